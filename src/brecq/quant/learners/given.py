"""An activation whose step is given: nothing of it is learned, but its elements skip quantization as others' do."""

from __future__ import annotations

from torch import Tensor

from brecq.quant import kernels
from brecq.quant.grid import Grid
from brecq.quant.learners.base import GridLearner


class GivenStep(GridLearner):
    """Learns nothing. `drop`: probability with which an element skips quantization."""

    rate = "step"
    random = True

    def __init__(self, grid: Grid, *, drop: float = 0.0) -> None:
        super().__init__(grid)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        return kernels.on_grid(x, self.start, self.drop, self.seed)

    def result(self) -> dict[str, Tensor]:
        return {}
