"""A bias learns a value of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brecq.quant.learners.base import Learner


class BiasShift(Learner):
    """Learns the change of a bias, in units of the root mean square of the layer's biases (none if all are 0).

    Args:
        bias: float32 [C], of the float network. start: float32 [C], its value so far.
    """

    rate = "bias"

    def __init__(self, bias: Tensor, start: Tensor) -> None:
        super().__init__()
        self.start = start.detach()  # the float bias is a parameter, but not of this module
        self.unit = bias.detach().square().mean().sqrt()
        self.theta = nn.Parameter(torch.zeros_like(bias, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """The value so far, [C], before rounding; `x`, the bias itself, is not looked at."""
        return self.start + self.theta * self.unit

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        return {"learned": self.start + self.theta * self.unit}
