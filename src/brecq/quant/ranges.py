"""Range initialization: the step and zero point with the smallest Lp rounding error.

Minimum and maximum are shrunk jointly, (f·min, f·max) for f = 1, 1 − 1/n, ..., 1/n, and the factor with the smallest
Σ|x̂ − x|^p is kept (Li et al. 2021 use p = 2.4 and 80 factors). All channels are searched at once. Asymmetric weights
try the neighbouring zero points as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brecq.errors import DataError, SourceError
from brecq.quant.affine import IntRange

MIN_SCALE = torch.finfo(torch.float32).tiny
"""Smallest step: a normal number whose reciprocal is one too."""

ZERO_SCALE = torch.finfo(torch.float32).eps
"""Step of what is zero everywhere, that of PyTorch's observers: any step is exact there, and a layer's bias, whose
step is a multiple of it, stays fine."""

_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Elements searched at a time, by device type: on the CPU few enough for the working buffers to stay in the cache, on
CUDA enough for the device to be busy."""


def weight_range(
    w: Tensor, range: IntRange, axis: int = 0, symmetric: bool = False, p: float = 2.4, candidates: int = 100
) -> tuple[Tensor, Tensor]:
    """Step and zero point of each channel of a weight.

    Args:
        w: weight of any shape, its output channels along `axis`.
        symmetric: keep the zero point in the middle of the range (at 0 for a signed one).
        p: exponent of the error that is minimized.
        candidates: how many shrink factors are tried.

    Returns:
        `scale` [C] float32, at least `MIN_SCALE`, and `zero_point` [C] float32, whole numbers inside `range`:
        zero is always a code. A channel that is all zero gets `ZERO_SCALE`.

    Raises:
        SourceError: the weight holds NaN or infinite values.
    """
    rows = w.detach().to(torch.float32).movedim(axis, 0).reshape(w.shape[axis], -1)
    if not bool(torch.isfinite(rows).all()):
        raise SourceError(
            f"a weight of shape {tuple(w.shape)} holds NaN or infinite values; check the checkpoint it came from"
        )
    if rows.shape[1] == 0:
        low = high = rows.new_zeros(rows.shape[0])
    else:
        low, high = rows.aminmax(dim=1)
    scales, zero_points = _candidates(low, high, range, symmetric, candidates)
    if not symmetric and candidates > 1:
        scales, zero_points = _shifted(scales, zero_points, range)
    unit = _unit(low, high)
    best = torch.empty(rows.shape[0], dtype=torch.long, device=rows.device)
    step = max(1, _CHUNK[rows.device.type] // max(1, rows.shape[1]))
    for first in torch.arange(0, rows.shape[0], step).tolist():
        part = slice(first, first + step)
        steps = (scales[:, part] / unit[part])[..., None]
        errors = _errors(rows[part] / unit[part, None], steps, zero_points[:, part, None], range, p)
        best[part] = errors.argmin(0)
    channel = torch.arange(rows.shape[0], device=rows.device)
    return scales[best, channel], zero_points[best, channel]


def activation_range(
    samples: Tensor,
    lo: float | Tensor,
    hi: float | Tensor,
    range: IntRange,
    symmetric: bool = False,
    p: float = 2.4,
    candidates: int = 100,
    *,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step and zero point of an activation tensor.

    Args:
        samples: 1-D, values the error is measured on; may be a subset of the activations.
        lo, hi: smallest and largest value of all the activations.
        symmetric: keep the zero point in the middle of the range (at its low end when no value is negative and the
            range starts at 0).
        counts: of each of `samples`, how many activations it stands for; `None` for as many each.

    Returns:
        `scale` and `zero_point`, 0-dim float32, as `weight_range`.

    Raises:
        DataError: `lo` and `hi` are NaN, infinite or the wrong way round (nothing was observed).
    """
    low = torch.as_tensor(lo, dtype=torch.float32, device=samples.device).reshape(1)
    high = torch.as_tensor(hi, dtype=torch.float32, device=samples.device).reshape(1)
    if not bool(torch.isfinite(low) & torch.isfinite(high) & (low <= high)):
        raise DataError(
            f"an activation ranges from {low.item()} to {high.item()}: its values are NaN or infinite, or none were "
            "observed; check the calibration data and what the network computes from it there (float32 ends at 3.4e38)"
        )
    scales, zero_points = _candidates(low, high, range, symmetric, candidates)
    unit = _unit(low, high)
    errors = torch.zeros(candidates, 1, dtype=torch.float64, device=samples.device)
    flat, size = samples.detach().reshape(-1).to(torch.float32), _CHUNK[samples.device.type]
    counts = torch.ones_like(flat) if counts is None else counts
    for part, weights in zip(flat.split(size), counts.split(size), strict=True):
        steps = (scales / unit)[:, :, None]
        errors += _errors(part[None] / unit, steps, zero_points[:, :, None], range, p, weights)
    best = errors.argmin(0)[0]
    return scales[best, 0], zero_points[best, 0]


def dividing(
    value: float, scale: float, zero_point: int, range: IntRange, *, centred: bool = False
) -> tuple[float, int]:
    """Step and zero point of the finest grid that covers another one, whose step divides `value`, and which has code
    and zero point for -`value`: products with clamps at ±`value` are exact on it. Where none does, as `value` is less
    than a step, the other one itself.

    Args:
        centred: the zero point stays where it is.
    """
    low, high = (range.low - zero_point) * scale, (range.high - zero_point) * scale
    if centred:
        steps = min(int(value / scale), zero_point - range.low)
    else:
        low = min(low, -value)
        steps = int(value * (range.high - range.low) / (high - low))
    if steps < 1:
        return scale, zero_point
    scale = float(torch.tensor(value / steps, dtype=torch.float32))
    return scale, zero_point if centred else range.low + round(-low / scale)


def _candidates(low: Tensor, high: Tensor, range: IntRange, symmetric: bool, candidates: int) -> tuple[Tensor, Tensor]:
    """Steps and zero points [candidates, C] for channel minima and maxima [C], both float32."""
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    factors = 1 - torch.arange(candidates, dtype=torch.float64, device=low.device)[:, None] / candidates
    if symmetric:
        middle = torch.full_like(low, (range.low + range.high + 1) // 2)
        if range.low == 0:
            middle = torch.where(low == 0, 0.0, middle)
        below = torch.where(middle > range.low, -low / (middle - range.low).clamp(min=1), 0.0)
        scale = torch.maximum(below, high / (range.high - middle))
        zero_point = middle
    else:
        scale = (high - low) / (range.high - range.low)
        # Shrinking moves both ends by the same factor, so the zero point is the same for every factor.
        share = torch.where(scale > 0, -low / scale.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        zero_point = (range.low + share.round()).clamp(range.low, range.high)
    scales = torch.where(scale > 0, (factors * scale).to(torch.float32).clamp(min=MIN_SCALE), ZERO_SCALE)
    return scales, zero_point.to(torch.float32).expand_as(scales)


def _unit(low: Tensor, high: Tensor) -> Tensor:
    """A power of two near the larger end of each range (1 for an empty one): in such units the p-th powers of the
    errors of tiny and of huge values neither vanish nor overflow, and nothing else changes."""
    exponent = torch.frexp(torch.maximum(-low, high)).exponent
    return torch.ldexp(torch.ones_like(high), exponent.clamp(-125, 125))


def _shifted(scales: Tensor, zero_points: Tensor, range: IntRange) -> tuple[Tensor, Tensor]:
    """Every candidate with its zero point, one less and one more: at few levels a code more on the side of the larger
    weights is worth a good part of the error."""
    shifts = torch.tensor([0.0, -1.0, 1.0], device=scales.device).view(3, 1, 1)
    zero_points = (zero_points + shifts).clamp(range.low, range.high)
    return scales.repeat(3, 1), zero_points.flatten(0, 1)


def _errors(
    rows: Tensor, scales: Tensor, zero_points: Tensor, range: IntRange, p: float, weights: Tensor | None = None
) -> Tensor:
    """Σ|x̂ − x|^p over each row of `rows` [C, K] for steps and zero points [candidates, C, 1], its terms multiplied by
    `weights` [K]: float64 [candidates, C].

    Works in one buffer; the arithmetic is that of `affine.fake_quantize`. On CUDA several candidates are tried at
    once: launching so many small operations would take longer than they do.
    """
    at_once = max(1, _CHUNK["cuda"] // max(1, rows.numel())) if rows.is_cuda else 1
    errors = torch.empty(len(scales), len(rows), dtype=torch.float64, device=rows.device)
    buffer = rows.new_empty(min(at_once, len(scales)), *rows.shape)
    for start in torch.arange(0, len(scales), at_once).tolist():  # `range` is the integers here
        tried = slice(start, start + at_once)
        scale, zero_point = scales[tried], zero_points[tried]
        steps = buffer[: len(scale)]
        torch.mul(rows, 1.0 / scale, out=steps)
        steps.round_().add_(zero_point).clamp_(range.low, range.high).sub_(zero_point).mul_(scale)
        steps.sub_(rows).abs_().pow_(p)
        errors[tried] = (steps if weights is None else steps.mul_(weights)).sum(2, dtype=torch.float64)
    return errors
