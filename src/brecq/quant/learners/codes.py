"""Moving codes: the codes of a weight are learned by the straight-through gradient, and its steps with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brecq.quant.grid import Grid
from brecq.quant.learners.base import GridLearner, Rate


class MovingCodes(GridLearner):
    """Learns a real position for each weight, in steps, whose nearest code it takes, and the logarithms of the steps.

    Every position starts in the middle of its code's cell: only a weight that the gradients push the same way again
    and again leaves it. The gradient of a position is that of the value, unless it has left the grid.

    Args:
        codes: int8, of the weight's shape, to start from.
    """

    def __init__(self, codes: Tensor, grid: Grid) -> None:
        super().__init__(grid)
        self.position = nn.Parameter(codes.to(torch.float32))
        self.theta = nn.Parameter(torch.zeros_like(grid.scale))

    def groups(self) -> dict[Rate, list[nn.Parameter]]:
        return {"codes": [self.position], "step": [self.theta]}

    def grid(self) -> Grid:
        return self.start.with_scale(self.start.scale * self.theta.exp())

    def codes(self) -> Tensor:
        """Float32, differentiable."""
        low, high = self.start.range.low, self.start.range.high
        inside = self.position.clamp(low - 0.5, high + 0.5)
        return inside + (self.position.round().clamp(low, high) - inside).detach()

    def forward(self, x: Tensor) -> Tensor:
        """The weight that the codes stand for; `x`, the weight itself, is not looked at."""
        return self.grid().dequantize(self.codes())

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        return {"scale": self.grid().scale, "codes": self.codes().to(torch.int8)}
