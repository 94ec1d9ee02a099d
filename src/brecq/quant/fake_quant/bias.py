"""The fake-quantizer of a bias: its learned value, rounded to the int32 grid of integer runtimes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from brecq.quant import room
from brecq.quant.fake_quant.activation import ActivationFakeQuantize
from brecq.quant.fake_quant.base import BaseFakeQuantize, Mode
from brecq.quant.fake_quant.weight import WeightFakeQuantize


class BiasFakeQuantize(BaseFakeQuantize):
    """Gives a bias its learned value, and rounds it where the layer's input and weight are quantized.

    Rounded biases are on the grid that integer runtimes add them on: int32, step = input step · weight step, zero
    point 0. Behind a float input (`inputs` is `None`, or quantizes nothing) a bias is learned and stays float.

    Attributes:
        learned: float32 [C], the value to use in place of the bias; `None` as long as nothing was learned.
        unit: float32, 0-dim, what a change of the bias is learned in units of; `None` before an initializer sets it.
    """

    settled = ("learned", "unit")
    learned: Tensor | None
    unit: Tensor | None

    def __init__(self, inputs: ActivationFakeQuantize | None, weight: WeightFakeQuantize) -> None:
        scheme = torch.per_channel_symmetric if weight.per_channel else torch.per_tensor_symmetric
        rounds = inputs is not None and inputs.enabled and weight.enabled
        super().__init__(room.BIAS_RANGE, torch.int32, scheme, 0, rounds)
        self.sources = (inputs, weight)  # a tuple: they are not this module's children

    @property
    def active(self) -> bool:
        """True if the bias is rounded at the moment."""
        inputs, weight = self.sources
        return super().active and inputs is not None and inputs.active and weight.active

    @torch.no_grad()
    def steps(self) -> Tensor:
        """The current steps, float32 [C] (or [1]): input step times weight step."""
        inputs, weight = self.sources
        assert inputs is not None, "a bias behind a float input has no step"
        return inputs.grid.scale * weight.grid.scale

    @torch.no_grad()
    def make_room(self, bias: Tensor) -> None:
        """Raise the weight's steps where `bias` needs it; steps that are not set yet are left for a later call."""
        inputs, weight = self.sources
        if self.enabled and inputs is not None and inputs.initialized and weight.initialized:
            weight.raise_steps(room.least_steps(self.value(bias), inputs.grid.scale, weight.grid.scale))

    @torch.no_grad()
    def integers(self, bias: Tensor) -> Tensor:
        """The codes of `bias`, int32 [C]."""
        inputs, weight = self.sources
        assert inputs is not None, "a bias behind a float input has no codes"
        return room.bias_codes(self.value(bias), inputs.grid.scale, weight.grid.scale)

    def value(self, bias: Tensor) -> Tensor:
        """What `bias` is replaced by, before rounding: [C], differentiable while learning."""
        if self.learner is not None:
            learned: Tensor = self.learner(bias)
            return learned
        return bias if self.learned is None else self.learned

    def forward(self, bias: Tensor) -> Tensor:
        if self.mode in (Mode.FLOAT, Mode.OBSERVE):
            return bias
        value = self.value(bias)
        if not self.active:
            return value
        rounded = self.integers(bias).to(torch.float32) * self.steps()
        return rounded + (value - value.detach()) if value.requires_grad else rounded  # straight-through gradient

    def describe(self) -> str:
        return "int32" if self.enabled else "float"

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        scale = self.steps()
        return scale, torch.zeros_like(scale, dtype=torch.int64)
