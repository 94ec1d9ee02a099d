from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brecq.errors import DataError, SourceError
from brecq.quant import ranges as module
from brecq.quant.affine import IntRange, fake_quantize, per_channel
from brecq.quant.ranges import MIN_SCALE, ZERO_SCALE, activation_range, weight_range

seeds = st.integers(0, 2**31)
signed = st.builds(IntRange.weights, st.integers(2, 8), st.booleans())
unsigned = st.builds(IntRange.activations, st.sampled_from([*range(2, 9), 16]))


def lp_error(x: Tensor, scale: float | Tensor, zero_point: float | Tensor, range: IntRange, p: float) -> float:
    scale, zero_point = torch.as_tensor(scale), torch.as_tensor(zero_point)
    return ((fake_quantize(x, scale, zero_point, range) - x).double().abs() ** p).sum().item()


def search_by_loops(
    x: Tensor, low: float, high: float, range: IntRange, symmetric: bool, p: float, n: int, shifted: bool = False
) -> float:
    """The smallest error of the shrink search, written as the textbook loop over factors."""
    low, high = min(low, 0.0), max(high, 0.0)
    best = float("inf")
    for k in torch.arange(n).tolist():
        lo, hi = low * (1 - k / n), high * (1 - k / n)
        if symmetric:
            zero_point = 0 if range.low < 0 or low == 0 else 2 ** (range.bits - 1)
            below = -lo / (zero_point - range.low) if zero_point > range.low else 0
            scale = max(below, hi / (range.high - zero_point))
        else:
            scale = (hi - lo) / (range.high - range.low)
            zero_point = range.low - (round(lo / scale) if scale > 0 else 0)
        shifts = (-1, 0, 1) if shifted and not symmetric else (0,)
        for shift in shifts:
            shifted_point = min(max(zero_point + shift, range.low), range.high)
            best = min(best, lp_error(x, max(scale, MIN_SCALE), float(shifted_point), range, p))
    return best


def random_weight(seed: int, channels: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(channels, size, generator=generator) * torch.exp(torch.randn(channels, 1, generator=generator))
    return w + torch.randn(channels, 1, generator=generator) * torch.randint(0, 2, (channels, 1), generator=generator)


@settings(max_examples=40)
@given(seeds, signed, st.booleans(), st.sampled_from([1.0, 2.0, 2.4]), st.integers(1, 30))
def test_weights_get_the_error_of_the_loop_over_channels(
    seed: int, range: IntRange, symmetric: bool, p: float, n: int
) -> None:
    w = random_weight(seed, 3, 20)
    scale, zero_point = weight_range(w, range, 0, symmetric, p, n)
    assert scale.dtype == zero_point.dtype == torch.float32
    for row, s, z in zip(w, scale, zero_point, strict=True):
        expected = search_by_loops(row, row.min().item(), row.max().item(), range, symmetric, p, n, shifted=n > 1)
        assert lp_error(row, s, z, range, p) == pytest.approx(expected, rel=1e-4)
        assert z == z.round()
        assert range.low <= z <= range.high
        assert z == 0 or not symmetric


@settings(max_examples=40)
@given(seeds, unsigned, st.booleans(), st.sampled_from(["both", "positive", "negative"]))
def test_activations_get_the_error_of_the_loop(seed: int, range: IntRange, symmetric: bool, side: str) -> None:
    x = torch.randn(300, generator=torch.Generator().manual_seed(seed)) ** 3
    x = {"both": x, "positive": x.relu(), "negative": -x.relu()}[side]
    low, high = x.min().item(), x.max().item()
    scale, zero_point = activation_range(x, low, high, range, symmetric, 2.4, 20)
    assert scale.shape == zero_point.shape == ()
    expected = search_by_loops(x, low, high, range, symmetric, 2.4, 20)
    assert lp_error(x, scale, zero_point, range, 2.4) == pytest.approx(expected, rel=1e-4)
    if side == "positive":
        assert zero_point == (0 if symmetric else range.low)
    elif side == "negative" and not symmetric:
        assert zero_point == range.high


@given(seeds, signed, st.booleans())
def test_the_search_never_loses_to_the_full_range(seed: int, range: IntRange, symmetric: bool) -> None:
    w = random_weight(seed, 4, 30)
    full = weight_range(w, range, 0, symmetric, candidates=1)
    best = weight_range(w, range, 0, symmetric, candidates=50)
    for row, s, z, s_full, z_full in zip(w, *best, *full, strict=True):
        assert lp_error(row, s, z, range, 2.4) <= lp_error(row, s_full, z_full, range, 2.4) * (1 + 1e-5)
        assert s <= s_full


def test_the_full_range_clips_nothing() -> None:
    w = random_weight(0, 16, 50)
    for bits in (2, 4, 8):
        for symmetric in (True, False):
            range = IntRange.weights(bits, symmetric)
            scale, zero_point = weight_range(w, range, 0, symmetric, candidates=1)
            error = (fake_quantize(w, scale[:, None], zero_point[:, None], range) - w).abs()
            # The rounded zero point of the asymmetric grid can push an end out by half a step more.
            assert (error <= scale[:, None] * (0.5 if symmetric else 1.0) * 1.0001).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_any_axis_is_the_channel(axis: int) -> None:
    w = torch.randn(4, 5, 3, 2)
    range = IntRange.weights(3, symmetric=False)
    expected = weight_range(w.movedim(axis, 0).contiguous(), range)
    for actual, value in zip(weight_range(w, range, axis), expected, strict=True):
        assert torch.equal(actual, value)


def test_searching_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = random_weight(1, 7, 40), torch.randn(1000).relu()
    whole = weight_range(w, IntRange(-8, 7)), activation_range(x, 0.0, x.max(), IntRange(0, 15))
    monkeypatch.setitem(module._CHUNK, "cpu", 64)
    pieces = weight_range(w, IntRange(-8, 7)), activation_range(x, 0.0, x.max(), IntRange(0, 15))
    for a, b in zip(whole, pieces, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 8])
def test_constant_channels(bits: int, symmetric: bool) -> None:
    w = torch.tensor([0.0, 0.7, -0.7, 1e-30, -1e30])[:, None].expand(5, 9)
    range = IntRange.weights(bits, symmetric)
    scale, zero_point = weight_range(w, range, 0, symmetric)
    assert torch.isfinite(scale).all()
    assert (scale >= MIN_SCALE).all()
    restored = fake_quantize(w, scale[:, None], zero_point[:, None], range)
    # One value and zero fit on any grid, but the candidates are discrete: within 1 %.
    torch.testing.assert_close(restored, w, rtol=0.01, atol=MIN_SCALE)
    assert scale[0] == torch.tensor(ZERO_SCALE)


def test_a_weight_without_elements_per_channel() -> None:
    scale, zero_point = weight_range(torch.zeros(3, 0), IntRange(-2, 1))
    assert torch.equal(scale, torch.full((3,), ZERO_SCALE))
    assert zero_point.shape == (3,)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("exponent", [-110, -70, -40, 40, 100])
def test_steps_scale_with_the_values_however_tiny_or_large(exponent: int, symmetric: bool) -> None:
    x = random_weight(3, 4, 200)
    factor = 2.0**exponent
    for range in (IntRange.weights(8, symmetric), IntRange.weights(2, symmetric)):
        (scale, zero_point), (scaled, shifted) = (weight_range(v, range, 0, symmetric) for v in (x, x * factor))
        assert torch.equal(scaled, scale * factor)
        assert torch.equal(shifted, zero_point)
    rows, range = x.flatten(), IntRange.activations(8)
    scale, _ = activation_range(rows, rows.min(), rows.max(), range, symmetric)
    scaled, _ = activation_range(rows * factor, rows.min() * factor, rows.max() * factor, range, symmetric)
    assert scaled == scale * factor


def test_without_samples_the_full_range_is_kept() -> None:
    scale, zero_point = activation_range(torch.zeros(0), -1.0, 2.0, IntRange(0, 3))
    assert (scale.item(), zero_point.item()) == (1.0, 1.0)


def test_symmetric_activations_center_the_zero_point() -> None:
    x = torch.tensor([-1.0, 0.5])
    assert activation_range(x, -1.0, 0.5, IntRange(0, 255), symmetric=True)[1] == 128
    assert activation_range(x, -1.0, 0.5, IntRange(-128, 127), symmetric=True)[1] == 0
    assert activation_range(x.abs(), 0.5, 1.0, IntRange(0, 255), symmetric=True)[1] == 0


@pytest.mark.parametrize(("low", "high"), [(float("inf"), -float("inf")), (0.0, float("nan")), (-float("inf"), 1.0)])
def test_unusable_activation_ranges_are_refused(low: float, high: float) -> None:
    with pytest.raises(DataError, match="check the calibration data"):
        activation_range(torch.zeros(4), low, high, IntRange(0, 255))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    w = torch.ones(2, 3)
    w[1, 2] = bad
    with pytest.raises(SourceError, match=r"\(2, 3\) holds NaN or infinite"):
        weight_range(w, IntRange(-8, 7))


def test_per_channel_result_fits_the_weight() -> None:
    w = torch.randn(6, 3, 3, 3)
    scale, zero_point = weight_range(w, IntRange(-8, 7))
    restored = fake_quantize(w, per_channel(scale, 4, 0), per_channel(zero_point, 4, 0), IntRange(-8, 7))
    assert (restored - w).square().mean() < 0.01 * w.square().mean()
