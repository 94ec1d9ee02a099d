"""LSQ (Esser et al. 2020) learns the step of an activation; QDrop skips quantization at random meanwhile."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brecq.quant import kernels, ranges
from brecq.quant.grid import Grid
from brecq.quant.learners.base import GridLearner


class StepSize(GridLearner):
    """Learns the one step of an activation.

    Args:
        log_space: learn the step's logarithm relative to its start, or the step itself.
        drop: probability with which an element skips quantization.
    """

    rate = "step"
    random = True

    def __init__(self, grid: Grid, *, log_space: bool = True, drop: float = 0.0) -> None:
        super().__init__(grid)
        self.log_space, self.drop = log_space, drop
        self.theta = nn.Parameter(torch.zeros_like(grid.scale) if log_space else grid.scale.clone())

    def grid(self) -> Grid:
        if self.log_space:
            return self.start.with_scale(self.start.scale * self.theta.exp())
        return self.start.with_scale(self.theta.abs().clamp(min=ranges.MIN_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        return kernels.on_grid(x, self.grid(), self.drop, self.seed, self.rows)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        return {"scale": self.grid().scale}
