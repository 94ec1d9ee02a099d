"""The fake-quantizer of a bias: its value is learned, and rounded to the int32 grid of integer runtimes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from brecq.quant import affine
from brecq.quant.affine import IntRange
from brecq.quant.fake_quant.activation import ActivationFakeQuantize
from brecq.quant.fake_quant.base import BaseFakeQuantize, Mode
from brecq.quant.fake_quant.weight import WeightFakeQuantize

BIAS_RANGE = IntRange(-(2**30), 2**30)
"""Bias codes stay inside int32 with room for the accumulator."""


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
        scale = self.step_size()
        rounded = affine.fake_quantize(value.detach(), scale, torch.zeros_like(scale), self.range)
        return rounded + (value - value.detach()) if value.requires_grad else rounded  # straight-through gradient

    def describe(self) -> str:
        return "int32" if self.enabled else "float"

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        scale = self.step_size()
        return scale, torch.zeros_like(scale, dtype=torch.int64)
