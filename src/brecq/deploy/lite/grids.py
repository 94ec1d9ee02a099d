"""Where a grid's codes lie in the integers that a runtime computes on: int8, or int16."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from brecq.converted.grids import Grid
from brecq.deploy.lite.program import Quantization
from brecq.deploy.simulate.arithmetic import int8_offset

ENDS = {"int8": (-128, 127), "int16": (-32768, 32767)}
"""Lowest and highest code by type."""


@dataclass(frozen=True)
class CodeGrid:
    """A grid moved into a type of codes: code + offset, which changes no value.

    A fused ReLU bounds them below where `low` is the zero point (see `int8_offset` for the upper end).

    Attributes:
        low, high: what the moved codes are bounded to. dtype: `int8` or `int16`.
    """

    scale: float
    zero_point: int
    low: int
    high: int
    offset: int
    dtype: str = "int8"

    @property
    def quantization(self) -> Quantization:
        return Quantization(np.array([self.scale], np.float32), self.zero_point)

    @property
    def ends(self) -> tuple[int, int]:
        """Lowest and highest code of the type."""
        return ENDS[self.dtype]

    @property
    def is_whole(self) -> bool:
        """True if every code of the type may occur."""
        return (self.low, self.high) == self.ends

    @property
    def is_rectified(self) -> bool:
        """True if a ReLU bounds the codes below."""
        return self.low > self.ends[0] and self.low == self.zero_point


def placed(grid: Grid) -> CodeGrid:
    """The place of a grid's codes."""
    if grid.dtype is torch.int16:
        return CodeGrid(grid.scale, grid.zero_point, grid.low, grid.high, 0, "int16")
    offset = int8_offset(grid)
    return CodeGrid(grid.scale, grid.zero_point + offset, grid.low + offset, grid.high + offset, offset)
