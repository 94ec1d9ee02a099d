from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brecq.quant import adaround
from brecq.quant.affine import IntRange, dequantize, fake_quantize, per_channel
from brecq.quant.ranges import weight_range

seeds = st.integers(0, 2**31)
integer_ranges = st.builds(IntRange.weights, st.integers(2, 8), st.booleans())


def plain_h(v: Tensor) -> Tensor:
    return (1.2 * torch.sigmoid(v) - 0.1).clamp(0, 1)


def plain_soft(base: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange) -> Tensor:
    return scale * ((base + plain_h(v)).clamp(range.low, range.high) - zero_point)


def plain_regularizer(v: Tensor, beta: float) -> Tensor:
    return (1 - (2 * plain_h(v) - 1).abs().pow(beta)).sum()


def problem(seed: int, range: IntRange, axis: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight with values well beyond the grid, and its broadcastable step and zero point."""
    w = torch.randn(5, 4, 3, 2, generator=torch.Generator().manual_seed(seed))
    scale, zero_point = weight_range(w, range, axis)
    return w * 1.5, per_channel(scale, 4, axis), per_channel(zero_point, 4, axis)


@given(seeds, integer_ranges)
def test_soft_weights_start_at_the_weight_clipped_to_the_grid(seed: int, range: IntRange) -> None:
    w, scale, zero_point = problem(seed, range)
    base = adaround.base_codes(w, scale, zero_point, range)
    v = adaround.initial_logits(w, scale, zero_point, range)
    assert torch.isfinite(v).all()
    assert base.min() >= range.low
    assert base.max() <= range.high
    ends = [dequantize(torch.tensor(float(code)), scale, zero_point) for code in (range.low, range.high)]
    clipped = torch.minimum(torch.maximum(w, ends[0]), ends[1])
    soft = adaround.soft_weight(base, v, scale, zero_point, range)
    assert ((soft - clipped).abs() <= scale * 1.2e-3 + 1e-6).all()


@given(seeds, integer_ranges)
def test_hard_codes_start_at_rounding_to_nearest(seed: int, range: IntRange) -> None:
    w, scale, zero_point = problem(seed, range)
    base = adaround.base_codes(w, scale, zero_point, range)
    hard = adaround.hard_codes(base, adaround.initial_logits(w, scale, zero_point, range), range)
    undecided = ((w / scale).frac().abs() - 0.5).abs() < 1e-4
    nearest = fake_quantize(w, scale, zero_point, range)
    assert torch.equal(dequantize(hard, scale, zero_point)[~undecided], nearest[~undecided])


@settings(max_examples=30)
@given(seeds, integer_ranges, st.sampled_from([0, 1, None]), st.booleans())
def test_soft_weight_is_its_plain_definition(seed: int, range: IntRange, axis: int | None, last: bool) -> None:
    w, scale, zero_point = problem(seed, range, axis or 0)
    if axis is None:
        scale, zero_point = scale.flatten()[0], zero_point.flatten()[0]
    if last:
        w = w.to(memory_format=torch.channels_last)
    base = adaround.base_codes(w, scale, zero_point, range)
    start = adaround.initial_logits(w, scale, zero_point, range)
    start = start + 3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(seed + 1))
    upstream = torch.randn(w.shape, generator=torch.Generator().manual_seed(seed + 2))
    gradients = []
    values = []
    for function in (adaround.soft_weight, plain_soft):
        v = start.clone().requires_grad_()
        value = function(base, v, scale, zero_point, range)
        value.backward(upstream)
        values.append(value.detach())
        gradients.append(v.grad)
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_soft_weight_passes_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(-2, 2, (4, 3, 2), generator=generator).double()
    v = (2 * torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    scale = torch.rand(4, 1, 1, generator=generator, dtype=torch.float64) + 0.1
    zero_point = torch.tensor([-2.0, 0.0, 1.0, 0.0], dtype=torch.float64)[:, None, None]
    assert torch.autograd.gradcheck(lambda v: adaround.soft_weight(base, v, scale, zero_point, IntRange(-2, 1)), v)


@pytest.mark.parametrize("beta", [2.0, 3.7, 20.0])
def test_regularizer_passes_gradcheck(beta: float) -> None:
    v = torch.linspace(-3, 3, 38, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: adaround.rounding_regularizer(v, beta), v)


@given(seeds, st.floats(1, 20))
def test_regularizer_is_its_plain_definition(seed: int, beta: float) -> None:
    start = 2 * torch.randn(3, 50, generator=torch.Generator().manual_seed(seed))
    results = []
    for function in (adaround.rounding_regularizer, plain_regularizer):
        v = start.clone().requires_grad_()
        value = function(v, beta)
        (2 * value).backward()
        results.append((value.detach(), v.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-4)


def test_regularizer_at_its_extremes() -> None:
    decided = torch.tensor([-5.0, 5.0, 30.0, -30.0], requires_grad=True)
    value = adaround.rounding_regularizer(decided, 2.0)
    assert value.item() == 0
    value.backward()
    assert torch.equal(decided.grad, torch.zeros(4))
    undecided = torch.zeros(7, requires_grad=True)
    for beta in (1.0, 2.0, 20.0):
        value = adaround.rounding_regularizer(undecided, beta)
        assert value.item() == pytest.approx(7)
        value.backward()
        assert torch.isfinite(undecided.grad).all()


def test_a_weight_on_the_grid_can_still_move() -> None:
    range = IntRange(-2, 1)
    scale, zero_point = torch.tensor(0.5), torch.tensor(0.0)
    w = torch.tensor([-3.0, -1.0, -0.5, 0.0])
    v = adaround.initial_logits(w, scale, zero_point, range).requires_grad_()
    base = adaround.base_codes(w, scale, zero_point, range)
    assert base.tolist() == [-2, -2, -1, 0]
    adaround.soft_weight(base, v, scale, zero_point, range).sum().backward()
    assert (v.grad > 0).all()


def test_weights_at_both_ends_of_the_grid_can_leave_them() -> None:
    """Clipped weights start at the end of the grid, with a gradient that can bring them back from it."""
    range = IntRange(-2, 1)
    scale, zero_point = torch.tensor(0.5), torch.tensor(-1.0)
    w = torch.tensor([7.0, 1.0, -0.5, -7.0])
    base = adaround.base_codes(w, scale, zero_point, range)
    v = adaround.initial_logits(w, scale, zero_point, range).requires_grad_()
    assert adaround.hard_codes(base, v, range).tolist() == [1, 1, -2, -2]
    assert adaround.hard_codes(base, torch.tensor([-9.0, -9.0, 9.0, 9.0]), range).tolist() == [0, 0, -1, -1]
    soft = adaround.soft_weight(base, v, scale, zero_point, range)
    torch.testing.assert_close(soft, torch.tensor([1.0, 1.0, -0.5, -0.5]), atol=1e-3, rtol=0)
    soft.sum().backward()
    assert (v.grad > 0).all()


@given(seeds, integer_ranges)
def test_decided_soft_weights_equal_hard_ones_bit_for_bit(seed: int, range: IntRange) -> None:
    w, scale, zero_point = problem(seed, range)
    base = adaround.base_codes(w, scale, zero_point, range)
    v = torch.where(torch.rand(w.shape, generator=torch.Generator().manual_seed(seed)) < 0.5, -20.0, 20.0)
    hard = dequantize(adaround.hard_codes(base, v, range), scale, zero_point)
    assert torch.equal(adaround.soft_weight(base, v, scale, zero_point, range), hard)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_and_eager_agree(
    axis: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch, compiler: None
) -> None:
    range = IntRange(-8, 7)
    w = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    scale, zero_point = (per_channel(value, 4, axis) for value in weight_range(w, range, axis, candidates=3))
    base = adaround.base_codes(w, scale, zero_point, range)
    start = adaround.initial_logits(w, scale, zero_point, range)
    upstream = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    results = []
    for mode in ("eager", "compiled"):
        monkeypatch.setenv("BRECQ_KERNELS", mode)
        v = start.clone().requires_grad_()
        soft = adaround.soft_weight(base, v, scale, zero_point, range)
        penalty = adaround.rounding_regularizer(v, 4.5)
        torch.autograd.backward([soft, penalty], [upstream, torch.tensor(0.3)])
        results.append((soft.detach(), penalty.detach(), v.grad))
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(eager, fused, rtol=1e-4, atol=1e-5)


def test_beta_schedule() -> None:
    schedule = [adaround.beta_schedule(step, 100, 0.2, 20, 2) for step in torch.arange(100).tolist()]
    assert schedule[:20] == [None] * 20
    assert schedule[20] == 20
    assert schedule[99] == pytest.approx(2)
    assert all(a > b for a, b in pairwise(schedule[20:]))
    assert adaround.beta_schedule(0, 1, 0.0, 20, 2) == 20
    assert adaround.beta_schedule(0, 1, 1.0, 20, 2) is None


@given(st.integers(0, 10**6), st.integers(2, 4))
def test_learning_can_start_from_codes_learned_before(seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(4, 9, generator=generator)
    range = IntRange.weights(bits, False)
    scale, zero_point = torch.full((4, 1), 0.4), torch.randint(-1, 2, (4, 1), generator=generator).float()
    base = adaround.base_codes(w, scale, zero_point, range)
    codes = (base + torch.randint(2, w.shape, generator=generator)).clamp(range.low, range.high)
    logits = adaround.initial_logits(w, scale, zero_point, range, codes.to(torch.int8))
    assert torch.equal(adaround.hard_codes(base, logits, range), codes)
    assert logits.abs().max() < 10  # every one can still move
