"""AdaRound (Nagel et al. 2020): learn for each weight whether it is rounded down or up.

A weight's code is its floor plus h(v) in [0, 1], where h is the rectified sigmoid of a logit v. While learning, h is
soft; a regularizer drives it to 0 or 1; afterwards the code is the floor, plus one where v ≥ 0.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from brecq.quant.affine import IntRange
from brecq.quant.fusion import Fused, FusedSum, bounds, constants, dense, flat, like

STRETCH = 1.2
OFFSET = -0.1
"""h(v) = clamp(STRETCH·σ(v) + OFFSET, 0, 1): stretched beyond [0, 1] so that 0 and 1 are reached at finite v."""

_MARGIN = 1e-3
"""Fractional parts start this far inside (0, 1): at the ends h has no gradient, and a weight on the grid (or clipped
to its end) could never move."""


def base_codes(w: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange) -> Tensor:
    """The lower of the two codes that a weight may round to, float32, of w's shape.

    Both are in `range`: a weight that is clipped to the top code has it above, and can come down from it. `scale` and
    `zero_point` broadcast with w.
    """
    return _floor(_clipped(w, scale, zero_point, range), zero_point, range) + zero_point


def initial_logits(
    w: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange, codes: Tensor | None = None
) -> Tensor:
    """Logits v for which base + h(v) is w/s (h within 1e-3 of 0 and 1).

    Weights beyond the grid are clipped to it first, so that they start on the code at its end. With `codes`, learned
    before, h starts halfway between the fractional part and what was learned: it rounds to these codes, and learning
    can still change them.
    """
    clipped = _clipped(w, scale, zero_point, range)
    floor = _floor(clipped, zero_point, range)
    fraction = clipped - floor
    if codes is not None:
        up = (codes.to(fraction.dtype) - zero_point > floor).to(fraction.dtype)
        fraction = 0.49 * fraction + 0.51 * up  # never quite 1/2, so that h rounds to the code
    fraction = fraction.clamp(_MARGIN, 1 - _MARGIN)
    return torch.logit((fraction - OFFSET) / STRETCH)


def _clipped(w: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange) -> Tensor:
    """w/s before rounding, clipped to the codes of `range` less the zero point."""
    steps = w.detach().to(torch.float32) * (1.0 / scale)
    return torch.minimum(torch.maximum(steps, range.low - zero_point), range.high - zero_point)


def _floor(clipped: Tensor, zero_point: Tensor, range: IntRange) -> Tensor:
    return torch.minimum(clipped.floor(), range.high - 1 - zero_point)


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(v) = clamp(1.2·σ(v) − 0.1, 0, 1)."""
    return (STRETCH * torch.sigmoid(v) + OFFSET).clamp(0, 1)


def hard_codes(base_codes: Tensor, v: Tensor, range: IntRange) -> Tensor:
    """Learned codes, float32: up where v ≥ 0 (h ≥ 1/2), inside `range`."""
    return (base_codes + (v.detach() >= 0)).clamp(range.low, range.high)


def soft_weight(base_codes: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange) -> Tensor:
    """s·(clamp(base + h(v), low, high) − z), in v's dtype and layout; differentiable with respect to v only.

    `base_codes` and `v` have the weight's shape; `scale` and `zero_point` are per tensor or vary along one dimension,
    broadcastable with v (see `affine.per_channel`).
    """
    return _SoftWeight.apply(base_codes, v, scale, zero_point, range)


def rounding_regularizer(v: Tensor, beta: float) -> Tensor:
    """Σ(1 − |2h(v) − 1|^β), 0-dim: zero when every h is 0 or 1. Differentiable with respect to v."""
    return _Regularizer.apply(v, beta)


class _SoftWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base_codes: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange) -> Tensor:
        v = dense(v.detach())
        shape = _channel_shape(v, scale)
        if shape[0] > 1 or (shape[1] > 1 and v.stride(0) * v.shape[0] != v.numel()):
            v = v.contiguous()
        scale, zero_point = flat(scale.contiguous(), (-1, 1)), flat(zero_point.contiguous(), (-1, 1))
        base = flat(like(base_codes, v), shape)
        limits = bounds(range.low, range.high, v.device)
        ctx.save_for_backward(v, base, scale, limits)
        soft: Tensor = _soften(flat(v, shape), base, scale, zero_point, limits)
        return soft.as_strided(v.shape, v.stride())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        v, base, scale, limits = ctx.saved_tensors
        upstream = flat(like(gradients[0], v), base.shape)
        grad: Tensor = _soften_gradient(flat(v, base.shape), upstream, base, scale, limits)
        return None, grad.as_strided(v.shape, v.stride()), None, None, None


class _Regularizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, beta: float) -> Tensor:
        v = dense(v.detach())
        value, derivative = _regularize(flat(v), constants([beta], v.dtype, v.device)[0])
        ctx.save_for_backward(derivative.as_strided(v.shape, v.stride()))
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] * ctx.saved_tensors[0], None


def _channel_shape(v: Tensor, scale: Tensor) -> tuple[int, int, int]:
    """(before, channels, after): sizes of v around the one dimension that `scale` varies along."""
    if scale.numel() == 1:
        return 1, 1, v.numel()
    axis = next(i for i, size in enumerate(scale.shape) if size > 1) + v.dim() - scale.dim()
    return prod(v.shape[:axis]), v.shape[axis], prod(v.shape[axis + 1 :])


@Fused
def _soften(v: Tensor, base: Tensor, scale: Tensor, zero_point: Tensor, limits: Tensor) -> Tensor:
    codes = torch.clamp(base + rectified_sigmoid(v), limits[0], limits[1])
    return (codes - zero_point) * scale


@Fused
def _soften_gradient(v: Tensor, upstream: Tensor, base: Tensor, scale: Tensor, limits: Tensor) -> Tensor:
    codes = base + rectified_sigmoid(v)
    inside = (codes >= limits[0]) & (codes <= limits[1])
    return torch.where(inside, upstream * scale * _slope(v), 0.0)


@FusedSum
def _regularize(v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Terms and derivative at once: they share the power, which costs more than everything else."""
    signed = 2 * rectified_sigmoid(v) - 1
    distance = signed.abs()
    # exp(y·log x) takes a fraction of pow's time; the bound keeps 0 · log 0 from becoming NaN at β = 1.
    power = torch.exp((beta - 1) * torch.log(distance.clamp(min=1e-30)))
    return 1 - power * distance, -2 * beta * power * signed.sign() * _slope(v)


def _slope(v: Tensor) -> Tensor:
    """The derivative of h."""
    sigmoid = torch.sigmoid(v)
    stretched = STRETCH * sigmoid + OFFSET
    return torch.where((stretched >= 0) & (stretched <= 1), STRETCH * sigmoid * (1 - sigmoid), 0.0)


def beta_schedule(step: int, total: int, warmup: float, start: float, end: float) -> float | None:
    """β at `step` of 0..total−1: `None` (no regularizer) during the first `warmup` share of the steps, then linear
    from `start` to `end`, which the last step reaches."""
    first = round(warmup * total)
    if step < first:
        return None
    return start + (end - start) * (step - first) / max(1, total - 1 - first)
