"""The fake-quantizer of a weight: rounded to nearest, or to codes that an initializer or a learner settled on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from brecq.quant import ranges, room
from brecq.quant.affine import IntRange
from brecq.quant.fake_quant.base import GridFakeQuantize, Mode
from brecq.quant.grid import Grid


@dataclass(frozen=True)
class Start:
    """Where learning the rounding of a weight starts, other than at the weight rounded to nearest.

    Attributes:
        weight: float, what is rounded in place of the weight: the weight itself, or what an initializer made of it.
        codes: int8, of its shape, that learning starts at.
    """

    weight: Tensor
    codes: Tensor


class WeightFakeQuantize(GridFakeQuantize):
    """Fake-quantizes a weight, per channel along `axis` (or as a whole).

    Attributes:
        codes: int8, the weight's shape; `None` for rounding to nearest.
        start: where learning starts; forgotten when it ends.
    """

    settled = ("scale", "zero_point", "codes")
    codes: Tensor | None

    def __init__(self, range: IntRange, qscheme: torch.qscheme, axis: int, *, enabled: bool = True) -> None:
        super().__init__(range, torch.int8, qscheme, axis, enabled)
        self.start: Start | None = None

    @torch.no_grad()
    def initialize(self, w: Tensor, p: float, candidates: int) -> None:
        """Choose the grid for the weight `w` by range search."""
        axis = self.ch_axis if self.per_channel else None
        rows = w if self.per_channel else w.reshape(1, -1)
        scale, zero_point = ranges.weight_range(rows, self.range, axis or 0, self.symmetric, p, candidates)
        self.grid, self.codes = Grid(scale, zero_point, self.range, axis), None

    @torch.no_grad()
    def raise_steps(self, least: Tensor) -> None:
        """Make the steps [C] at least `least` [C] (or [1]); codes that are fixed are rounded to the larger steps."""
        grid = self.grid
        if bool((grid.scale >= least).all()):
            return
        raised = torch.maximum(grid.scale, least)
        if self.codes is not None:
            ratio, zero_point = grid.with_scale(grid.scale / raised).spread(self.codes.dim())
            self.codes = room.moved(self.codes, zero_point, ratio)
        self.grid = grid.with_scale(raised)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        super().restore(state)
        self.start = None

    @torch.no_grad()
    def integers(self, w: Tensor) -> Tensor:
        """The codes of `w` in hard mode, int8."""
        codes = self.state().get("codes")
        return self.grid.quantize(w).to(torch.int8) if codes is None else codes

    def forward(self, w: Tensor) -> Tensor:
        if not self.active:
            return w
        if self.mode is Mode.LEARN and self.learner is not None:
            value: Tensor = self.learner(w)
            return value
        return self.grid.dequantize(self.integers(w))
