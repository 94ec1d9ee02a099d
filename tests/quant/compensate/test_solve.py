"""The closed form of whole layers, measured on their outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from brecq.errors import DataError
from brecq.quant.affine import IntRange
from brecq.quant.compensate import Geometry, Moments, MomentSum, Solution, compensate
from brecq.quant.grid import Grid
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


def moments_of(geometry: Geometry, x_f: Tensor, x_q: Tensor) -> Moments:
    total = MomentSum()
    total.add(geometry, x_q, x_f)
    return total.found()


def value(solution: Solution) -> Tensor:
    """The quantized weight; its codes are in range and what learning starts from rounds to them."""
    grid = solution.grid
    assert solution.codes.min() >= grid.range.low
    assert solution.codes.max() <= grid.range.high
    assert torch.equal(grid.quantize(solution.weight), solution.codes.float())
    return grid.dequantize(solution.codes)


def start(w: Tensor, range: IntRange, axis: int | None, symmetric: bool = False) -> Grid:
    scale, zero_point = weight_range(w if axis is not None else w.reshape(1, -1), range, axis or 0, symmetric)
    return Grid(scale, zero_point, range, axis)


def solve(name: str, x_f: Tensor, x_q: Tensor, w: Tensor, grid: Grid, *, bias: bool = False, **options) -> Solution:
    geometry = LAYERS[name][0]
    moments = moments_of(geometry, x_f, x_q)
    return compensate(w, geometry, moments.central() if bias else moments, grid, symmetric=False, **options)


def output_error(name: str, x_f: Tensor, x_q: Tensor, w: Tensor, q: Tensor, *, bias: bool = False) -> float:
    """Mean squared error of the layer's output, with `bias` about its mean in each channel."""
    run = LAYERS[name][1]
    missing = run(x_f, w) - run(x_q, q)
    if bias:
        axes = [i for i, _ in enumerate(missing.shape) if i != (2 if name == "linear" else 1)]
        missing = missing - missing.mean(axes, keepdim=True)
    return missing.square().mean().item()


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
    geometry, _, _, _, axis = LAYERS[name]
    x_f, x_q, w = example(name, seed)
    grid = start(w, IntRange.weights(bits, symmetric), None if whole else axis, symmetric)
    moments = moments_of(geometry, x_f, x_q)
    solution = compensate(
        w, geometry, moments.central() if bias else moments, grid, symmetric=symmetric, prescribed=prescribed
    )
    if prescribed:
        assert torch.equal(solution.grid.scale, grid.scale)
    if prescribed or symmetric:
        assert torch.equal(solution.grid.zero_point, grid.zero_point)
    nearest = grid.dequantize(grid.quantize(w))
    errors = [output_error(name, x_f, x_q, w, q, bias=bias) for q in (value(solution), nearest)]
    assert errors[0] <= errors[1] * (1 + 1e-4) + 1e-9


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_far_better_than_rounding_to_nearest(name: str) -> None:
    """At 2 bits, where inputs are correlated: by a third at least, in every kind of layer."""
    x_f, x_q, w = example(name, 1)
    grid = start(w, IntRange.weights(2, symmetric=False), LAYERS[name][4])
    solution = solve(name, x_f, x_q, w, grid)
    errors = [output_error(name, x_f, x_q, w, q) for q in (value(solution), grid.dequantize(grid.quantize(w)))]
    assert errors[0] < 0.67 * errors[1]


def test_how_much_of_the_inputs_noise_weights_make_up_for() -> None:
    """At 8 bits the codes are close to the target: the weight itself, or what shrinks as noise of as much power as the
    signal asks for, to half."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 20_000, 8, generator=generator)
    w = torch.randn(6, 8, generator=generator)
    moments, grid = moments_of(Geometry.linear(), x, x + noise), start(2 * w, IntRange.weights(8, False), 0)
    for share, size in ((0.0, 1.0), (0.5, 0.75), (1.0, 0.5)):
        solution = compensate(w, Geometry.linear(), moments.corrected(share), grid, symmetric=False, damping=1e-6)
        torch.testing.assert_close(value(solution), size * w, atol=0.05, rtol=0)


def test_a_convolution_equals_the_linear_layer_on_its_patches() -> None:
    x_f, x_q, w = example("conv", 0)
    grid = start(w, IntRange.weights(3, symmetric=False), 0)
    conv = solve("conv", x_f, x_q, w, grid, bias=True)
    patches = [F.unfold(x, 3, padding=1).transpose(1, 2) for x in (x_f, x_q)]
    linear = solve("linear", *patches, w.flatten(1), grid, bias=True)
    assert torch.equal(conv.codes.flatten(1), linear.codes)
    torch.testing.assert_close(conv.grid.scale, linear.grid.scale)


def test_edge_detectors_keep_their_sum() -> None:
    """Depthwise weights that sum to zero on an input with a large mean: rounding to nearest breaks the sum."""
    x, _, w = example("depthwise", 0)
    x = x + 5
    w = w - w.mean((2, 3), keepdim=True)
    grid = start(w, IntRange.weights(3, symmetric=False), 0)
    q, nearest = value(solve("depthwise", x, x, w, grid)), grid.dequantize(grid.quantize(w))
    sums = [v.sum((2, 3)).abs().mean() for v in (q, nearest)]
    assert sums[0] < 0.3 * sums[1]
    errors = [output_error("depthwise", x, x, w, v) for v in (q, nearest)]
    assert errors[0] < 0.2 * errors[1]


def test_steps_that_vary_within_a_row_stay() -> None:
    """A scale per input channel, as a PT2E quantizer may ask for in a transposed one: only codes are free."""
    x_f, x_q, w = example("transposed", 3)
    grid = start(w, IntRange.weights(4, symmetric=False), 0)
    solution = solve("transposed", x_f, x_q, w, grid)
    assert torch.equal(solution.grid.scale, grid.scale)
    errors = [output_error("transposed", x_f, x_q, w, q) for q in (value(solution), grid.dequantize(grid.quantize(w)))]
    assert errors[0] < 0.9 * errors[1]


def test_dead_inputs_and_dead_channels() -> None:
    """Inputs that are always zero and weights that are: nothing is divided by zero, dead inputs keep their weight."""
    x, w = torch.randn(50, 40).relu(), torch.randn(4, 40)
    x[:, :5] = 0
    w[2] = 0
    grid = start(w, IntRange.weights(4, symmetric=False), 0)
    for inputs in (x, torch.zeros_like(x)):
        solution = solve("linear", inputs, inputs, w, grid, bias=True)
        q = value(solution)
        assert torch.isfinite(solution.weight).all()
        assert torch.isfinite(q).all()
        assert (solution.grid.scale > 0).all()
        assert (q[2] == 0).all()
        assert ((q - w)[:, :5].abs() < 1.5 * grid.scale[:, None]).all()


def test_infinite_inputs_are_named() -> None:
    x, w = torch.full((4, 3), torch.inf), torch.randn(2, 3)
    with pytest.raises(DataError, match=r"a weight of shape \(2, 3\) hold NaN or infinite"):
        solve("linear", x, x, w, start(w, IntRange.weights(4, symmetric=False), 0), bias=True)


def test_same_bits_every_time() -> None:
    x_f, x_q, w = example("conv", 0)
    grid = start(w, IntRange.weights(2, symmetric=False), 0)
    first, second = (solve("conv", x_f, x_q, w, grid) for _ in "ab")
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.grid.scale, second.grid.scale)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3])
def test_inputs_that_hardly_vary_around_a_large_mean(spread: float) -> None:
    """Learned queries, position embeddings: their central moments are rounding errors, and not positive."""
    generator = torch.Generator().manual_seed(0)
    level = 100 * torch.rand(64, generator=generator)
    x = level * (1 + spread * torch.randn(250, 4, 64, generator=generator))
    w = torch.randn(8, 64, generator=generator)
    grid = start(w, IntRange.weights(4, symmetric=False), 0)
    q = value(solve("linear", x, x, w, grid, bias=True))
    assert torch.isfinite(q).all()
    nearest, x = grid.dequantize(grid.quantize(w)).double(), x.double()
    errors = [output_error("linear", x, x, w.double(), each, bias=True) for each in (q.double(), nearest)]
    assert errors[0] <= errors[1] * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize(("name", "kind"), [("linear", "single"), ("conv1d", "constant"), ("depthwise", "zero")])
def test_inputs_that_do_not_vary_decide_nothing(name: str, kind: str) -> None:
    """Without their mean, all that is left of such moments is the rounding of float32, of either sign."""
    geometry, _, shape, weight_shape, axis = LAYERS[name]
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        if kind == "single":
            x = 10 * torch.randn(1, 1, shape[2], generator=generator)
        else:
            channels = torch.randn(1, shape[1], *(1 for _ in shape[2:]), generator=generator)
            x = 10 * channels.expand(shape) * (kind != "zero")
        weight = torch.randn(weight_shape, generator=generator)
        moments = moments_of(geometry, x * (1 + 1e-6), x).central()
        solution = compensate(weight, geometry, moments, start(weight, IntRange(-8, 7), axis), symmetric=False)
        error = (value(solution) - weight).square().mean() / weight.var()
        assert error < 0.02, error


def shaken(moments: Moments, by: float) -> Moments:
    """The same moments but for the last bits: as another order of adding up would give them."""
    generator = torch.Generator().manual_seed(0)

    def noise(value: Tensor) -> Tensor:
        return 1 + by * torch.randn(value.shape, generator=generator, dtype=value.dtype)

    gram = moments.gram * noise(moments.gram)
    return replace(moments, gram=(gram + gram.mT) / 2, cross=moments.cross * noise(moments.cross))


@pytest.mark.parametrize("name", LAYERS)
def test_the_last_bits_of_the_moments_decide_on_hardly_a_code(name: str) -> None:
    geometry, _, _, _, axis = LAYERS[name]
    equal = total = 0
    for seed in range(3):
        x_f, x_q, w = example(name, seed)
        grid, moments = start(w, IntRange(-8, 7), axis), moments_of(geometry, x_f, x_q)
        one, other = (compensate(w, geometry, m, grid, symmetric=False) for m in (moments, shaken(moments, 1e-14)))
        equal, total = equal + int((one.codes == other.codes).sum()), total + w.numel()
    assert equal >= 0.999 * total


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", LAYERS)
def test_from_the_same_moments_cuda_chooses_the_same_codes(name: str) -> None:
    geometry, _, _, _, axis = LAYERS[name]
    equal = total = 0
    for seed in range(3):
        x_f, x_q, w = example(name, seed)
        grid, moments = start(w, IntRange(-8, 7), axis), moments_of(geometry, x_f, x_q)
        there = replace(moments, **{n: getattr(moments, n).cuda() for n in ("gram", "cross", "mean", "float_mean")})
        moved = Grid(grid.scale.cuda(), grid.zero_point.cuda(), grid.range, grid.axis)
        one = compensate(w, geometry, moments, grid, symmetric=False)
        other = compensate(w.cuda(), geometry, there, moved, symmetric=False)
        equal, total = equal + int((one.codes == other.codes.cpu()).sum()), total + w.numel()
    assert equal >= 0.999 * total


def grid_of(weight: Tensor) -> Grid:
    bits = IntRange.weights(4, symmetric=False)
    return Grid(*weight_range(weight.flatten(1), bits), bits, 0)


@pytest.mark.parametrize("name", ["conv", "depthwise", "linear"])
@pytest.mark.parametrize("exponent", [-120, -100, -75, -70, 10, 60, 120])
@pytest.mark.parametrize("central", [False, True])
def test_codes_do_not_depend_on_the_unit_of_the_inputs(name: str, exponent: int, central: bool) -> None:
    """From 1e-36 to 1e36, whose squares float32 cannot hold: the same codes, steps and start to the last bit."""
    x_f, x_q, weight = example(name, seed=3)
    geometry, solutions = LAYERS[name][0], []
    for unit in (1.0, 2.0**exponent):
        moments = moments_of(geometry, x_f * unit, x_q * unit)
        moments = moments.central() if central else moments
        solutions.append(compensate(weight, geometry, moments, grid_of(weight), symmetric=False))
    first, second = solutions
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.grid.scale, second.grid.scale)
    assert torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("central", [False, True])
def test_inputs_that_depend_on_each_other_need_no_damping_of_the_users(size: int, central: bool) -> None:
    """Errors of products in float32 are larger than the least damping that may be asked for."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(400, 1, generator=generator) @ torch.randn(1, size, generator=generator)).abs()
    total, weight = MomentSum(), torch.randn(8, size, generator=generator)
    for part in x.split(100):
        total.add(Geometry.linear(), part)
    moments = total.found().central() if central else total.found()
    found = compensate(weight, Geometry.linear(), moments, grid_of(weight), symmetric=False, damping=1e-6)
    error = x @ (found.weight - weight).T
    assert error.square().mean() < 1e-3 * (x @ weight.T).square().mean()
