"""Room for biases: integer runtimes add them as int32, in steps of the input's step times the weight's.

A channel that is pruned, or switched off by its batch norm, has weights of (nearly) zero and needs hardly any step for
them, but its bias may be large: beside such a step its code would leave int32. Its weight's step is raised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brecq.quant.affine import IntRange
from brecq.quant.ranges import MIN_SCALE

BIAS_RANGE = IntRange(1 - 2**30, 2**30 - 1)
"""Bias codes stay inside int32 with room for the accumulator."""

ROOM = 2.0**28
"""Code of a bias that room was made for: the steps may still shrink to a quarter."""


def least_steps(bias: Tensor, input_step: Tensor, weight_steps: Tensor) -> Tensor:
    """The steps that a weight needs at least, float32, [C] or [1] as `weight_steps`.

    Weights so small beside their bias lose nothing that counts: half a raised step for each of K weights, at inputs of
    255 steps, is K·2⁻²¹ of the bias at most; at inputs of 65 535, whose steps leave less room, K·2⁻¹³.

    Args:
        bias: float32 [C]. input_step: one element. weight_steps: [C], or [1] for the weight as a whole.
    """
    size, step, steps = bias.detach().abs().double(), input_step.double(), weight_steps.double()
    if steps.numel() == 1 and size.numel():
        size = size.amax().reshape(1)
    too_large = size >= BIAS_RANGE.high * step * steps
    return torch.where(too_large, size / (ROOM * step), MIN_SCALE / step).float()


def bias_codes(bias: Tensor, input_step: Tensor, weight_steps: Tensor) -> Tensor:
    """The codes of a bias, int32 [C]. In float64: beyond 2²³ steps, float32 misses the nearest one."""
    steps = input_step.double() * weight_steps.double()
    return (bias.double() / steps).round().clamp(BIAS_RANGE.low, BIAS_RANGE.high).to(torch.int32)


def moved(codes: Tensor, zero_point: Tensor, ratio: Tensor) -> Tensor:
    """Codes of the same values on steps that are 1 / `ratio` as large; `zero_point` and `ratio` broadcast."""
    return (((codes - zero_point) * ratio).round() + zero_point).to(codes.dtype)
