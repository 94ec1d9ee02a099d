"""The closed form of whole layers, measured on their outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from brecq.errors import DataError
from brecq.quant import affine
from brecq.quant.affine import IntRange, per_channel
from brecq.quant.compensate import Geometry, MomentSum, Solution, compensate
from brecq.quant.ranges import weight_range

Run = Callable[[Tensor, Tensor], Tensor]

LAYERS: dict[str, tuple[Geometry, Run, tuple[int, ...], tuple[int, ...], int]] = {
    # geometry, how it runs, shape of the input and of the weight, axis of the output channels
    "conv": (Geometry.conv((3, 3), 1, 1), lambda x, w: F.conv2d(x, w, None, 1, 1), (8, 4, 6, 6), (5, 4, 3, 3), 0),
    "grouped": (
        Geometry.conv((3, 3), 2, 1, 1, 2),
        lambda x, w: F.conv2d(x, w, None, 2, 1, 1, 2),
        (8, 8, 8, 8),
        (6, 4, 3, 3),
        0,
    ),
    "depthwise": (
        Geometry.conv((3, 3), 1, 1, 1, 6),
        lambda x, w: F.conv2d(x, w, None, 1, 1, 1, 6),
        (4, 6, 8, 8),
        (6, 1, 3, 3),
        0,
    ),
    "conv1d": (Geometry.conv((4,), 2), lambda x, w: F.conv1d(x, w, None, 2), (16, 12, 20), (5, 12, 4), 0),
    "linear": (Geometry.linear(), lambda x, w: F.linear(x, w), (40, 3, 40), (6, 40), 0),
    "transposed": (
        Geometry.conv_transpose((3, 3), 2, 1, groups=2),
        lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, groups=2),
        (8, 6, 5, 5),
        (6, 4, 3, 3),
        1,
    ),
}


def example(name: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """x_f, x_q and the weight of a layer: correlated inputs with a mean, as they are behind an activation function."""
    _, _, inputs, shape, _ = LAYERS[name]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(inputs, generator=generator)
    x = (x + 2 * torch.randn((inputs[0], *(1 for _ in inputs[1:])), generator=generator) + 1).relu()
    return x, x + 0.2 * torch.randn(inputs, generator=generator), torch.randn(shape, generator=generator)


def moments_of(geometry: Geometry, x_f: Tensor, x_q: Tensor):
    total = MomentSum()
    total.add(geometry, x_q, x_f)
    return total.moments()


def value(solution: Solution, axis: int | None, range: IntRange) -> Tensor:
    """The quantized weight; its codes are in range and what learning starts from rounds to them."""
    assert solution.codes.min() >= range.low
    assert solution.codes.max() <= range.high
    scale, zero_point = grid_of(solution.codes, solution.scale, solution.zero_point, axis)
    started = affine.quantize(solution.weight, scale, zero_point, range)
    assert torch.equal(started, solution.codes.float())
    return affine.dequantize(solution.codes, scale, zero_point)


def grid_of(w: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    if axis is None:
        return scale[0], zero_point[0]
    return per_channel(scale, w.dim(), axis), per_channel(zero_point, w.dim(), axis)


def start(w: Tensor, range: IntRange, axis: int | None, symmetric: bool) -> tuple[Tensor, Tensor]:
    return weight_range(w if axis is not None else w.reshape(1, -1), range, axis or 0, symmetric)


@given(
    name=st.sampled_from(sorted(LAYERS)),
    seed=st.integers(0, 999),
    bits=st.sampled_from([2, 3, 4, 8]),
    symmetric=st.booleans(),
    whole=st.booleans(),
    bias=st.booleans(),
    prescribed=st.booleans(),
)
def test_never_worse_than_rounding_to_nearest(
    name: str, seed: int, bits: int, symmetric: bool, whole: bool, bias: bool, prescribed: bool
) -> None:
    geometry, run, _, _, axis_of = LAYERS[name]
    x_f, x_q, w = example(name, seed)
    range, axis = IntRange.weights(bits, symmetric), None if whole else axis_of
    scale, zero_point = start(w, range, axis, symmetric)
    moments = moments_of(geometry, x_f, x_q)
    solution = compensate(
        w,
        geometry,
        moments,
        scale,
        zero_point,
        range,
        axis=axis,
        symmetric=symmetric,
        bias=bias,
        prescribed=prescribed,
    )
    if prescribed:
        assert torch.equal(solution.scale, scale)
    if prescribed or symmetric:
        assert torch.equal(solution.zero_point, zero_point)
    wanted, nearest = run(x_f, w), affine.fake_quantize(w, *grid_of(w, scale, zero_point, axis), range)
    channels = 2 if name == "linear" else 1
    axes = [i for i, _ in enumerate(wanted.shape) if i != channels]
    found, before = run(x_q, value(solution, axis, range)), run(x_q, nearest)
    if bias:
        assert solution.bias_shift is not None
        found = found + per_channel(solution.bias_shift, found.dim(), channels)
        before = before + (wanted - before).mean(axes, keepdim=True)
    else:
        assert solution.bias_shift is None
    errors = [(y - wanted).square().mean().item() for y in (found, before)]
    assert errors[0] <= errors[1] * (1 + 1e-4) + 1e-9


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_far_better_than_rounding_to_nearest(name: str) -> None:
    """At 2 bits, where inputs are correlated: by a third at least, in every kind of layer."""
    geometry, run, _, _, axis = LAYERS[name]
    x_f, x_q, w = example(name, 1)
    range = IntRange.weights(2, symmetric=False)
    scale, zero_point = start(w, range, axis, False)
    solution = compensate(
        w, geometry, moments_of(geometry, x_f, x_q), scale, zero_point, range, axis=axis, symmetric=False, bias=False
    )
    nearest = affine.fake_quantize(w, *grid_of(w, scale, zero_point, axis), range)
    errors = [(run(x_q, q) - run(x_f, w)).square().mean() for q in (value(solution, axis, range), nearest)]
    assert errors[0] < 0.67 * errors[1]


def test_a_convolution_equals_the_linear_layer_on_its_patches() -> None:
    geometry, _, _, _, _ = LAYERS["conv"]
    x_f, x_q, w = example("conv", 0)
    range = IntRange.weights(3, symmetric=False)
    scale, zero_point = weight_range(w, range)
    conv = compensate(
        w, geometry, moments_of(geometry, x_f, x_q), scale, zero_point, range, axis=0, symmetric=False, bias=True
    )
    patches = [F.unfold(x, 3, padding=1).transpose(1, 2) for x in (x_f, x_q)]
    linear = compensate(
        w.flatten(1), Geometry.linear(), moments_of(Geometry.linear(), *patches), scale, zero_point, range,
        axis=0, symmetric=False, bias=True,
    )  # fmt: skip
    assert torch.equal(conv.codes.flatten(1), linear.codes)
    torch.testing.assert_close(conv.scale, linear.scale)
    torch.testing.assert_close(conv.bias_shift, linear.bias_shift, atol=1e-4, rtol=1e-4)


def test_edge_detectors_keep_their_sum() -> None:
    """Depthwise weights that sum to zero on an input with a large mean: rounding to nearest breaks the sum."""
    geometry, run, _, _, _ = LAYERS["depthwise"]
    x, _, w = example("depthwise", 0)
    x = x + 5
    w = w - w.mean((2, 3), keepdim=True)
    range = IntRange.weights(3, symmetric=False)
    scale, zero_point = weight_range(w, range)
    solution = compensate(
        w, geometry, moments_of(geometry, x, x), scale, zero_point, range, axis=0, symmetric=False, bias=False
    )
    q, nearest = value(solution, 0, range), affine.fake_quantize(w, *grid_of(w, scale, zero_point, 0), range)
    sums = [v.sum((2, 3)).abs().mean() for v in (q, nearest)]
    assert sums[0] < 0.3 * sums[1]
    errors = [(run(x, v) - run(x, w)).square().mean() for v in (q, nearest)]
    assert errors[0] < 0.2 * errors[1]


def test_steps_that_vary_within_a_row_stay() -> None:
    """A scale per input channel, as a PT2E quantizer may prescribe for a transposed one: only codes are free."""
    geometry, run, _, _, _ = LAYERS["transposed"]
    x_f, x_q, w = example("transposed", 3)
    range = IntRange.weights(4, symmetric=True)
    scale, zero_point = weight_range(w, range, 0, symmetric=True)
    solution = compensate(
        w, geometry, moments_of(geometry, x_f, x_q), scale, zero_point, range, axis=0, symmetric=True, bias=False
    )
    assert torch.equal(solution.scale, scale)
    nearest = affine.fake_quantize(w, *grid_of(w, scale, zero_point, 0), range)
    errors = [(run(x_q, q) - run(x_f, w)).square().mean() for q in (value(solution, 0, range), nearest)]
    assert errors[0] < 0.9 * errors[1]


def test_dead_inputs_and_dead_channels() -> None:
    """Inputs that are always zero and weights that are: nothing is divided by zero, dead inputs keep their weight."""
    x, w = torch.randn(50, 40).relu(), torch.randn(4, 40)
    x[:, :5] = 0
    w[2] = 0
    range = IntRange.weights(4, symmetric=False)
    scale, zero_point = weight_range(w, range)
    for inputs in (x, torch.zeros_like(x)):
        solution = compensate(
            w, Geometry.linear(), moments_of(Geometry.linear(), inputs, inputs), scale, zero_point, range,
            axis=0, symmetric=False, bias=True,
        )  # fmt: skip
        q = value(solution, 0, range)
        assert torch.isfinite(solution.weight).all()
        assert torch.isfinite(q).all()
        assert (solution.scale > 0).all()
        assert (q[2] == 0).all()
        assert solution.bias_shift is not None
        assert torch.isfinite(solution.bias_shift).all()
        assert ((q - w)[:, :5].abs() < 1.5 * scale[:, None]).all()


def test_infinite_inputs_are_named() -> None:
    x, w = torch.full((4, 3), torch.inf), torch.randn(2, 3)
    range = IntRange.weights(4, symmetric=False)
    with pytest.raises(DataError, match=r"a weight of shape \(2, 3\) hold NaN or infinite"):
        compensate(
            w, Geometry.linear(), moments_of(Geometry.linear(), x, x), *weight_range(w, range), range,
            axis=0, symmetric=False, bias=True,
        )  # fmt: skip


def test_same_bits_every_time() -> None:
    geometry, _, _, _, _ = LAYERS["conv"]
    x_f, x_q, w = example("conv", 0)
    range = IntRange.weights(2, symmetric=False)
    results = [
        compensate(
            w, geometry, moments_of(geometry, x_f, x_q), *weight_range(w, range), range,
            axis=0, symmetric=False, bias=True,
        )
        for _ in "ab"
    ]  # fmt: skip
    assert torch.equal(results[0].weight, results[1].weight)
    assert torch.equal(results[0].scale, results[1].scale)
