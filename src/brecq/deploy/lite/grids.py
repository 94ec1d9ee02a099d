"""Where a grid's codes lie in int8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brecq.converted.grids import Grid
from brecq.deploy.lite.program import Quantization
from brecq.deploy.simulate.arithmetic import int8_offset


@dataclass(frozen=True)
class Int8Grid:
    """A grid moved into int8: code + offset, which changes no value.

    A fused ReLU bounds them below where `low` is the zero point (see `int8_offset` for the upper end).

    Attributes:
        low, high: what the moved codes are bounded to.
    """

    scale: float
    zero_point: int
    low: int
    high: int
    offset: int

    @property
    def quantization(self) -> Quantization:
        return Quantization(np.array([self.scale], np.float32), self.zero_point)

    @property
    def is_rectified(self) -> bool:
        """True if a ReLU bounds the codes below."""
        return self.low > -128 and self.low == self.zero_point


def in_int8(grid: Grid) -> Int8Grid:
    """The place of a grid's codes."""
    offset = int8_offset(grid)
    return Int8Grid(grid.scale, grid.zero_point + offset, grid.low + offset, grid.high + offset, offset)
