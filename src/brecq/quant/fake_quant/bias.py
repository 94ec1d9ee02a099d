"""The fake-quantizer of a bias: its value is learned, and rounded to the int32 grid of integer runtimes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from brecq.quant import ranges
from brecq.quant.affine import IntRange
from brecq.quant.fake_quant.activation import ActivationFakeQuantize
from brecq.quant.fake_quant.base import BaseFakeQuantize, Mode
from brecq.quant.fake_quant.weight import WeightFakeQuantize

BIAS_RANGE = IntRange(1 - 2**30, 2**30 - 1)
"""Bias codes stay inside int32 with room for the accumulator."""

ROOM = 2.0**28
"""Largest code of a bias that `make_room` had to make room for: its steps may still shrink to a quarter."""


class BiasFakeQuantize(BaseFakeQuantize):
    """Gives a bias its learned value, and rounds it where the layer's input and weight are quantized.

    Rounded biases are on the grid that integer runtimes add them on: int32, step = input step · weight step, zero
    point 0. Behind a float input (`inputs` is `None`, or quantizes nothing) a bias is learned and stays float.

    Attributes:
        learned: float32 [C], the value to use in place of the bias; `None` as long as nothing was learned.
        theta: float32 [C], change of the bias while learning, in units of the root mean square of the layer's biases.
    """

    learned: Tensor | None
    theta: nn.Parameter | None

    def __init__(self, inputs: ActivationFakeQuantize | None, weight: WeightFakeQuantize) -> None:
        scheme = torch.per_channel_symmetric if weight.per_channel else torch.per_tensor_symmetric
        rounds = inputs is not None and inputs.enabled and weight.enabled
        super().__init__(BIAS_RANGE, torch.int32, scheme, 0, rounds)
        self.sources = (inputs, weight)  # a tuple: they are not this module's children
        self.register_buffer("learned", None)
        self.register_parameter("theta", None)

    @property
    def active(self) -> bool:
        """True if the bias is rounded at the moment."""
        inputs, weight = self.sources
        return super().active and inputs is not None and inputs.active and weight.active

    @torch.no_grad()
    def step_size(self) -> Tensor:
        """Float32 [C]."""
        inputs, weight = self.sources
        assert inputs is not None, "a bias behind a float input has no step"
        return (inputs.step_size() * weight.step_size()).detach()

    @torch.no_grad()
    def make_room(self, bias: Tensor) -> None:
        """Raise the weight's steps where the codes of `bias` would leave `BIAS_RANGE`, or the step float32's normal
        range.

        Weights so small beside their bias lose nothing that counts: half a raised step for each of K weights, at
        inputs of 255 steps, is K·2⁻²¹ of the bias at most. Steps that are not set yet are left for a later call.
        """
        inputs, weight = self.sources
        if not self.enabled or inputs is None or not inputs.initialized or weight.scale is None:
            return
        size, step = self.value(bias).detach().abs().double(), inputs.step_size().detach().double()
        if weight.scale.numel() == 1:
            size = size.amax().reshape(1)
        too_large = size >= self.range.high * step * weight.scale.double()
        least = torch.where(too_large, size / (ROOM * step), ranges.MIN_SCALE / step)
        weight.raise_steps(least.float())

    @torch.no_grad()
    def integers(self, bias: Tensor) -> Tensor:
        """The codes of `bias`, int32 [C]. In float64: beyond 2²³ steps, float32 misses the nearest one."""
        inputs, weight = self.sources
        assert inputs is not None, "a bias behind a float input has no codes"
        step = inputs.step_size().double() * weight.step_size().double()
        return (self.value(bias).double() / step).round().clamp(self.range.low, self.range.high).to(torch.int32)

    def begin_learning(self, bias: Tensor) -> nn.Parameter:
        """Start from the current value; returns the parameter to optimize (without effect if all of `bias` is 0)."""
        self.theta = nn.Parameter(torch.zeros_like(bias, dtype=torch.float32))
        self.mode = Mode.LEARN
        return self.theta

    def value(self, bias: Tensor) -> Tensor:
        """What `bias` is replaced by, before rounding: [C], differentiable while learning."""
        start = bias if self.learned is None else self.learned
        if self.theta is None:
            return start
        return start + self.theta * bias.detach().square().mean().sqrt()

    def end_learning(self, learned: Tensor | None) -> None:
        """Keep `learned` for good (`None`: the bias as it was)."""
        self.learned, self.theta = learned, None
        self.mode = Mode.HARD

    def forward(self, bias: Tensor) -> Tensor:
        if self.mode in (Mode.FLOAT, Mode.OBSERVE):
            return bias
        value = self.value(bias)
        if not self.active:
            return value
        rounded = self.integers(bias).to(torch.float32) * self.step_size()
        return rounded + (value - value.detach()) if value.requires_grad else rounded  # straight-through gradient

    def describe(self) -> str:
        return "int32" if self.enabled else "float"

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        scale = self.step_size()
        return scale, torch.zeros_like(scale, dtype=torch.int64)
