"""The fake-quantizer of an activation as a whole: it watches values until its range is chosen, then rounds them."""

from __future__ import annotations

import torch
from torch import Tensor

from brecq.outliers import Outlier
from brecq.quant import kernels, ranges
from brecq.quant.affine import IntRange
from brecq.quant.fake_quant.base import GridFakeQuantize, Mode
from brecq.quant.grid import Grid
from brecq.quant.observer import Observer


class ActivationFakeQuantize(GridFakeQuantize):
    """Fake-quantizes an activation as a whole.

    Attributes:
        observer: what was seen in mode `OBSERVE`. fixed: its grid is neither searched nor learned.
        divides: a number that its step has to divide, so that it is not learned (`ranges.dividing`).
        outlier: of the samples that its range was chosen from.
    """

    def __init__(
        self, range: IntRange, qscheme: torch.qscheme, *, dtype: torch.dtype = torch.uint8, enabled: bool = True
    ) -> None:
        super().__init__(range, dtype, qscheme, -1, enabled)
        self.observer = Observer()
        self.fixed = False
        self.divides: float | None = None
        self.outlier: Outlier | None = None

    def fix(self, scale: float, zero_point: int) -> None:
        """Give it a grid that is neither searched nor learned: a back end's operator writes on this one only."""
        self.fixed = True
        self.grid = Grid(torch.tensor(scale), torch.tensor(float(zero_point)), self.range)

    @torch.no_grad()
    def initialize(self, p: float, candidates: int) -> None:
        """Choose the grid from what was observed, and forget it."""
        seen, self.observer = self.observer, Observer()
        self.outlier = seen.outlier()
        values, counts = seen.samples()
        found = ranges.activation_range(
            values, seen.low, seen.high, self.range, self.symmetric, p, candidates, counts=counts
        )
        if self.divides is not None:
            scale, zero_point = ranges.dividing(
                self.divides, float(found[0]), int(found[1]), self.range, centred=self.symmetric
            )
            found = found[0].new_tensor(scale), found[1].new_tensor(float(zero_point))
        self.grid = Grid(*found, self.range)

    def describe(self) -> str:
        signed = self.enabled and self.symmetric and self.range.low < 0
        return f"{self.range.bits} bit signed" if signed else super().describe()

    def forward(self, x: Tensor) -> Tensor:
        if self.mode is Mode.OBSERVE and self.enabled:
            self.observer.add(x)
        if not self.active:
            return x
        if self.mode is Mode.LEARN and self.learner is not None:
            value: Tensor = self.learner(x)
            return value
        return kernels.on_grid(x, self.grid)
