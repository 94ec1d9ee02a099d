"""Coordinate descent (COMQ, Zhang et al. 2024): each code in turn the best one given all others."""

from __future__ import annotations

from torch import Tensor

from brecq.quant.compensate.columns import sweep
from brecq.quant.compensate.row_grid import RowGrid


def descend(codes: Tensor, target: Tensor, gram: Tensor, grid: RowGrid) -> Tensor:
    """One pass over all columns; (w − q)·H·(w − q)ᵀ never grows.

    Args:
        codes: [G, R, K]. target: w, [G, R, K]. gram: H, [G, K, K], its diagonal positive. All float64.

    Returns:
        Codes, float64 [G, R, K].
    """
    scale, zero_point = (value.expand_as(codes) for value in grid.steps())
    return sweep((target - grid.values(codes)) @ gram, gram, scale, zero_point, grid.range, codes)


def optimum(codes: Tensor, target: Tensor, gram: Tensor, grid: RowGrid) -> Tensor:
    """For each weight the real value that is best given all other codes, float64 [G, R, K]."""
    values = grid.values(codes)
    return values + (target - values) @ gram / gram.diagonal(dim1=1, dim2=2)[:, None]
