"""Tuned scales: the steps of a weight are learned, its codes stay (EfficientQAT's second stage, Chen et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brecq.quant.grid import Grid
from brecq.quant.learners.base import GridLearner


class TunedScale(GridLearner):
    """Learns the logarithms of the steps relative to their start. `codes`: int8, of the weight's shape."""

    rate = "step"

    def __init__(self, codes: Tensor, grid: Grid) -> None:
        super().__init__(grid)
        self.codes = codes
        self.theta = nn.Parameter(torch.zeros_like(grid.scale))

    def grid(self) -> Grid:
        return self.start.with_scale(self.start.scale * self.theta.exp())

    def forward(self, x: Tensor) -> Tensor:
        """The weight that the codes stand for; `x`, the weight itself, is not looked at."""
        return self.grid().dequantize(self.codes)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        return {"scale": self.grid().scale, "codes": self.codes}
