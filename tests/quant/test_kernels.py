from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from brecq.errors import ConfigError
from brecq.quant.affine import IntRange, fake_quantize
from brecq.quant.kernels import Rows, drop_mask, hash_mix, lsq_qdrop

seeds = st.integers(0, 2**63)
ranges = st.one_of(
    st.builds(IntRange.activations, st.integers(2, 8)), st.builds(IntRange.weights, st.integers(2, 8), st.booleans())
)
layouts: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "sliced": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "expanded": lambda x: x[:, :, :1, :1].expand_as(x),
}


class StraightThrough(torch.autograd.Function):
    """Rounds `exact`, with the gradient of `steps`."""

    @staticmethod
    def forward(ctx: Any, steps: Tensor, exact: Tensor) -> Tensor:
        return torch.round(exact)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def plain_lsq_qdrop(
    x: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange, dropped: Tensor, grad_scale: float
) -> Tensor:
    """LSQ and QDrop as their papers' code writes them: straight-through rounding, `where`, autograd for the rest."""
    step = scale * grad_scale + (scale - scale * grad_scale).detach()
    # What is rounded is x times the reciprocal, as in the quantizer; the gradient is that of x / s.
    rounded = StraightThrough.apply(x / step, x.detach() * (1.0 / scale.detach()))
    codes = rounded + zero_point
    # Not `clamp`: from torch 2.14 on its gradient is 0 at the ends, where values that round to the end codes lie.
    codes = torch.where(codes < range.low, range.low, torch.where(codes > range.high, range.high, codes))
    quantized = (codes - zero_point) * step
    return torch.where(dropped, x, quantized)


def problem(seed: int, range: IntRange, shape: tuple[int, ...] = (2, 3, 5, 4)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed % 2**32)
    scale = torch.rand((), generator=generator) + 0.05
    zero_point = torch.tensor(float(range.low + seed % range.levels))
    x = torch.randn(shape, generator=generator) * scale * range.levels / 2
    return x, scale, zero_point


@pytest.mark.parametrize("layout", layouts)
@given(seeds, ranges, st.sampled_from([0.0, 0.3, 1.0]))
def test_values_and_gradients_are_those_of_the_plain_definition(
    layout: str, seed: int, range: IntRange, drop: float
) -> None:
    x, scale, zero_point = problem(seed, range)
    x = layouts[layout](x)
    dropped = drop_mask(x, drop, seed)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    results = []
    for plain in (False, True):
        leaf, step = x.clone(memory_format=torch.preserve_format).requires_grad_(), scale.clone().requires_grad_()
        value = (
            plain_lsq_qdrop(leaf, step, zero_point, range, dropped, 0.25)
            if plain
            else lsq_qdrop(leaf, step, zero_point, range.low, range.high, drop, seed, 0.25)
        )
        value.backward(upstream)
        results.append((value.detach(), leaf.grad, step.grad))
    (value, grad_x, grad_scale), (plain_value, plain_grad_x, plain_grad_scale) = results
    torch.testing.assert_close(value, plain_value)
    torch.testing.assert_close(grad_x, plain_grad_x)
    torch.testing.assert_close(grad_scale, plain_grad_scale, rtol=1e-3, atol=1e-3)
    quantized = fake_quantize(x, scale, zero_point, range)
    assert torch.equal(value, torch.where(dropped, x, quantized))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("upstream", layouts)
def test_layout_is_kept_and_any_upstream_layout_is_understood(layout: str, upstream: str) -> None:
    x, scale, zero_point = problem(3, IntRange(0, 15))
    x = layouts[layout](x)
    gradient = layouts[upstream](torch.randn(x.shape))
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    value = lsq_qdrop(leaf, scale, zero_point, 0, 15, 0.5, 1, 1.0)
    assert value.stride() == x.stride()
    value.backward(gradient)
    dropped = drop_mask(x, 0.5, 1)
    steps = torch.round(x * (1.0 / scale)) + zero_point
    assert torch.equal(leaf.grad, torch.where(dropped | ((steps >= 0) & (steps <= 15)), gradient, 0.0))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (2, 3), (2, 1, 4, 1), (2, 3, 4, 5, 6)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    range = IntRange(0, 15)
    x, scale, zero_point = problem(3, range, shape)
    x.requires_grad_()
    value = lsq_qdrop(x, scale.requires_grad_(), zero_point, 0, 15, 0.0, 0, 1.0)
    assert torch.equal(value, fake_quantize(x, scale, zero_point, range))
    value.sum().backward()
    assert x.grad.shape == shape
    assert torch.equal(hash_mix(x.detach(), value.detach(), 1.0, 0), value.detach())


def test_one_element_parameters_are_accepted() -> None:
    x = torch.randn(10)
    scale = torch.full((1,), 0.1, requires_grad=True)
    lsq_qdrop(x, scale, torch.zeros(1), -8, 7, 0.0, 0, 1.0).sum().backward()
    assert scale.grad.shape == (1,)


@given(seeds, st.floats(0, 1))
def test_mask_drops_the_share_asked_for(seed: int, drop: float) -> None:
    share = drop_mask(torch.empty(20_000), drop, seed).float().mean().item()
    assert abs(share - drop) <= 6 * (drop * (1 - drop) / 20_000) ** 0.5 + 2**-24


def test_mask_ends() -> None:
    x = torch.empty(5000)
    assert not drop_mask(x, 0.0, 9).any()
    assert drop_mask(x, 1.0, 9).all()


def test_mask_looks_independent_between_neighbours_and_seeds() -> None:
    n = 1 << 20
    masks = [drop_mask(torch.empty(n), 0.5, seed).float() - 0.5 for seed in (0, 1, 2, 3, 1 << 40)]

    def correlation(a: Tensor, b: Tensor) -> float:
        return 4 * (a * b).mean().item()

    for mask in masks:
        assert abs(mask.mean().item()) < 6 * 0.5 / n**0.5
        for lag in [1, 2, 3, 4, 7, 8, 16, 32, 49, 64, 96, 256, 3136, 4096, 65536, 1 << 19]:
            assert abs(correlation(mask[lag:], mask[:-lag])) < 0.01
        for block in (16, 1024):
            assert mask.view(-1, block).sum(1).var().item() == pytest.approx(block / 4, rel=0.2)
    for i, a in enumerate(masks):
        for b in masks[:i]:
            for lag in (0, 1, 2, 64):
                assert abs(correlation(a[lag:], b[: n - lag])) < 0.01


def test_mask_depends_on_seed_and_position_only() -> None:
    x = torch.randn(2, 8, 4, 4)
    mask = drop_mask(x, 0.5, 5)
    assert torch.equal(mask, drop_mask(torch.zeros_like(x), 0.5, 5))
    assert not torch.equal(mask, drop_mask(x, 0.5, 6))
    last = drop_mask(x.to(memory_format=torch.channels_last), 0.5, 5)
    assert torch.equal(last.permute(0, 2, 3, 1).flatten(), mask.flatten())


@pytest.mark.parametrize("layout_a", layouts)
@pytest.mark.parametrize("layout_b", layouts)
def test_hash_mix_is_where(layout_a: str, layout_b: str) -> None:
    a, b = layouts[layout_a](torch.randn(2, 3, 5, 4)), layouts[layout_b](torch.randn(2, 3, 5, 4))
    mixed = hash_mix(a, b, 0.4, 11)
    assert torch.equal(mixed, torch.where(drop_mask(a, 0.4, 11), b, a))


@given(seed=seeds, first=st.integers(1, 4))
def test_parts_of_a_batch_are_dropped_as_in_the_whole(seed: int, first: int) -> None:
    x, scale, zero_point = problem(seed, IntRange.activations(4), (5, 3, 4, 4))
    x = x.contiguous(memory_format=torch.channels_last)
    parts = [(x[:first], Rows(0, first, 5)), (x[first:], Rows(first, 5 - first, 5))]
    whole = lsq_qdrop(x, scale, zero_point, 0, 15, 0.5, seed, 1.0)
    found = [lsq_qdrop(part, scale, zero_point, 0, 15, 0.5, seed, 1.0, rows) for part, rows in parts]
    assert torch.equal(torch.cat(found), whole)
    mixed = [hash_mix(part, -part, 0.5, seed, rows) for part, rows in parts]
    assert torch.equal(torch.cat(mixed), hash_mix(x, -x, 0.5, seed))
    assert [rows.numel(part) for part, rows in parts] == [x.numel()] * 2


def test_hash_mix_has_no_gradient() -> None:
    a, b = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    assert not hash_mix(a, b, 0.5, 0).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x, scale, zero_point = problem(1, IntRange(0, 15))
    half = x.to(dtype).requires_grad_()
    step = scale.clone().requires_grad_()
    value = lsq_qdrop(half, step, zero_point, 0, 15, 0.5, 2, 1.0)
    full = lsq_qdrop(half.detach().float(), scale, zero_point, 0, 15, 0.5, 2, 1.0)
    assert value.dtype == dtype
    assert torch.equal(value, full.to(dtype))
    value.sum().backward()
    assert half.grad.dtype == dtype
    assert step.grad.dtype == torch.float32


@pytest.mark.parametrize("drop", [-0.1, 1.5, float("nan")])
def test_drop_must_be_a_probability(drop: float) -> None:
    with pytest.raises(ConfigError, match="probability"):
        lsq_qdrop(torch.zeros(3), torch.ones(()), torch.zeros(()), 0, 3, drop, 0, 1.0)


def run(x: Tensor, range: IntRange, seed: int) -> tuple[Tensor, ...]:
    _, scale, zero_point = problem(seed, range)
    leaf, step = x.clone(memory_format=torch.preserve_format).requires_grad_(), scale.requires_grad_()
    value = lsq_qdrop(leaf, step, zero_point, range.low, range.high, 0.5, seed, 0.01)
    value.backward(torch.sin(37 * x))
    return value.detach(), leaf.grad, hash_mix(x, -x, 0.5, seed), step.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_equals_eager_bit_for_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, compiler: None) -> None:
    # Sizes that do and do not fill whole vectors; one the size of an early layer, split between threads.
    for seed, shape in enumerate([(2, 3, 5, 7), (1, 1, 3, 3), (4, 8, 16, 16), (8, 24, 56, 57)]):
        for range in (IntRange(0, 15), IntRange(-127, 127)):
            x = problem(seed, range, shape)[0].to(dtype, memory_format=torch.channels_last)
            results = []
            for mode in ("eager", "compiled", "compiled"):
                monkeypatch.setenv("BRECQ_KERNELS", mode)
                results.append(run(x, range, seed))
            eager, fused, again = results
            for a, b in zip(eager[:3], fused[:3], strict=True):
                assert torch.equal(a, b)
            torch.testing.assert_close(eager[3], fused[3], rtol=1e-3, atol=1e-4)
            for a, b in zip(fused, again, strict=True):
                assert torch.equal(a, b)


def test_no_recompilation_for_other_shapes_and_values(compiler: None) -> None:
    torch.compiler.reset()
    run(torch.randn(2, 3, 80, 80), IntRange(0, 15), 0)
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed, shape in enumerate([(4, 3, 90, 50), (200, 700), (1_000_003,), (33, 5, 200)]):
            run(torch.randn(shape), IntRange(-4, 3), seed)
        with torch.no_grad():
            x = torch.randn(1, 8, 64, 65).to(memory_format=torch.channels_last)
            lsq_qdrop(x, torch.tensor(0.1), torch.tensor(3.0), 0, 7, 0.2, 5, 1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_cuda_equals_cpu(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRECQ_KERNELS", "eager")
    range = IntRange(0, 15)
    x = problem(0, range, (4, 8, 33, 17))[0]
    leaf, step = x.cuda().requires_grad_(), problem(0, range)[1].cuda().requires_grad_()
    expected = lsq_qdrop(x, step.detach().cpu(), problem(0, range)[2], 0, 15, 0.5, 3, 1.0)
    monkeypatch.setenv("BRECQ_KERNELS", mode)
    value = lsq_qdrop(leaf, step, problem(0, range)[2].cuda(), 0, 15, 0.5, 3, 1.0)
    value.sum().backward()
    assert torch.equal(value.detach().cpu(), expected)
    assert torch.isfinite(step.grad)
