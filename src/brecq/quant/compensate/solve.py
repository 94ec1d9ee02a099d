"""Compensated start: codes and steps of a weight in closed form, from what its layer's inputs were.

    w* = w·B·H⁻¹                 the weight that comes closest to the float layer's output (GPTAQ, Li et al. 2025)
    compensated rounding of w*, then in turns the best step and zero point for the codes, and coordinate descent

The result is never worse than rounding to nearest in the layer's output error on these inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor

from brecq.errors import DataError
from brecq.quant.compensate.dense import DenseRows
from brecq.quant.compensate.exact import FEWEST
from brecq.quant.compensate.form import rows_at_once
from brecq.quant.compensate.geometry import Geometry
from brecq.quant.compensate.inputs import Inputs
from brecq.quant.compensate.objective import Objective
from brecq.quant.compensate.row_grid import RowGrid, fit
from brecq.quant.compensate.search import FEW
from brecq.quant.grid import Grid
from brecq.quant.ranges import MIN_SCALE

PASSES = 3
"""Passes of coordinate descent."""


@dataclass(frozen=True)
class Solution:
    """What a weight starts with.

    Attributes:
        codes: int8, the weight's shape. grid: what they stand for.
        weight: float32, the weight's shape: for each weight the real value that is best given all other codes, as
            near to it as one that rounds to its code can be.
    """

    codes: Tensor
    grid: Grid
    weight: Tensor


def compensate(
    weight: Tensor,
    geometry: Geometry,
    inputs: Inputs,
    grid: Grid,
    *,
    symmetric: bool,
    prescribed: bool = False,
    damping: float = 0.01,
    least: float = MIN_SCALE,
) -> Solution:
    """The closed-form start of one weight.

    Args:
        weight: float, of any convolution or linear layer. geometry: of one of its uses.
        inputs: of all its uses, on the weight's device; central ones where biases take the mean error.
        grid: to start from.
        symmetric: the zero point stays. prescribed: the steps stay as well, only codes are free; steps that vary
            within the weights of one output channel stay anyway.
        damping: share of H's mean diagonal that is added to its diagonal: how far to distrust the samples.
        least: smallest step that may be chosen.

    Raises:
        DataError: the inputs hold NaN or infinite values.
    """
    rows = geometry.rows(weight.detach())
    if not inputs.finite:
        raise DataError(
            f"the inputs of a layer with a weight of shape {tuple(weight.shape)} hold NaN or infinite values; check "
            "the calibration data and what the network computes from it there (float32 ends at 3.4e38)"
        )
    scale, zero_point = (value.double().flatten() for value in (grid.scale, grid.zero_point))
    found = RowGrid(scale, zero_point, _owner(geometry, weight, grid), grid.range, least)
    layer = inputs.layer(inputs.pull(damping))
    codes, near = (torch.empty_like(rows, dtype=dtype) for dtype in (torch.int8, torch.float32))
    free, owner = not prescribed and found.by_row, found.owner
    for part in _parts(found, layer.width, rows):
        objective, start = layer.on(rows[:, part]), replace(found, owner=owner[:, part])
        decided, found = _solve(objective, start, free=free, shift=not symmetric)
        decided, found = _never_worse(objective, start, decided, found)
        codes[:, part], near[:, part] = decided.to(codes.dtype), objective.near(decided, found)
    return Solution(
        geometry.weight(codes, weight.shape),
        replace(
            grid,
            scale=found.scale.float().view_as(grid.scale),
            zero_point=found.zero_point.float().view_as(grid.zero_point),
        ),
        geometry.weight(near, weight.shape),
    )


def _parts(grid: RowGrid, width: int, rows: Tensor) -> Iterator[slice]:
    """Rows that are worked on together: all where they share steps, and where they are few weights each."""
    groups, count, size = rows.shape
    together = grid.by_row and (len(grid.scale) < grid.owner.numel() or size <= FEW)
    step = count if together else rows_at_once(width, count, groups)
    for first in range(0, count, step):
        yield slice(first, first + step)


def _solve(objective: Objective, grid: RowGrid, *, free: bool, shift: bool) -> tuple[Tensor, RowGrid]:
    """Codes and steps; the steps of other rows stay."""
    if isinstance(objective, DenseRows) and objective.size <= FEW and free and len(grid.scale) == grid.owner.numel():
        return objective.search(grid, shift=shift)
    codes = objective.round(grid)
    for _ in repeat(None, PASSES):
        if free:
            grid = fit(objective.products(codes, grid), grid, shift)
        codes = objective.descend(codes, grid)
    if isinstance(objective, DenseRows) and objective.size <= FEWEST:
        codes = objective.exact(codes, grid)
    return codes, fit(objective.products(codes, grid), grid, shift=False) if free else grid


def _never_worse(objective: Objective, start: RowGrid, codes: Tensor, grid: RowGrid) -> tuple[Tensor, RowGrid]:
    """Rounding to nearest where that has the smaller output error, undamped: per step, or per row where steps are
    fixed."""
    nearest = objective.nearest(start)
    change = objective.errors(codes, grid) - objective.errors(nearest, start)
    if not start.by_row:
        return torch.where((change > 0)[:, :, None], nearest, codes), grid
    worse = grid.sums(change) > 0
    return torch.where(worse[grid.owner], nearest, codes), grid.pick(worse, start)


def _owner(geometry: Geometry, weight: Tensor, grid: Grid) -> Tensor:
    """Which step each element of the rows has: [G, R, 1], or [G, R, K] where it varies within rows."""
    index = torch.arange(grid.scale.numel(), device=weight.device).view_as(grid.scale)
    owner = geometry.rows(replace(grid, scale=index).spread(weight.dim())[0].expand(weight.shape))
    constant = bool((owner == owner[:, :, :1]).all())
    return owner[:, :, :1].contiguous() if constant else owner.contiguous()
