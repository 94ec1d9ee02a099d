"""A bias learns a value of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brecq.quant.learners.base import Learner


class BiasShift(Learner):
    """Learns the change of a bias.

    Args:
        start: float32 [C], its value so far. unit: float32, 0-dim, what the change is counted in.
    """

    rate = "bias"

    def __init__(self, start: Tensor, unit: Tensor) -> None:
        super().__init__()
        self.start = start.detach()  # the float bias is a parameter, but not of this module
        self.unit = unit
        self.theta = nn.Parameter(torch.zeros_like(start, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """The value so far, [C], before rounding; `x`, the bias itself, is not looked at."""
        return self.start + self.theta * self.unit

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        return {"learned": self.start + self.theta * self.unit}
