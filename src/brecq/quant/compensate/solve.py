"""Compensated start: codes and steps of a weight in closed form, from the moments of its layer's inputs.

    w* = w·B·H⁻¹                 the weight that comes closest to the float layer's output (GPTAQ, Li et al. 2025)
    compensated rounding of w*, then in turns the best step and zero point for the codes, and coordinate descent

The result is never worse than rounding to nearest in the layer's output error on these inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor

from brecq.errors import DataError
from brecq.quant.compensate.descent import descend, optimum
from brecq.quant.compensate.exact import FEWEST, best_codes
from brecq.quant.compensate.geometry import Geometry
from brecq.quant.compensate.moments import Moments
from brecq.quant.compensate.rounding import Factor
from brecq.quant.compensate.row_grid import RowGrid, fit
from brecq.quant.compensate.search import FEW, search
from brecq.quant.grid import Grid
from brecq.quant.ranges import MIN_SCALE

PASSES = 3
"""Passes of coordinate descent."""

_PRECISION = 1e-12
"""Relative error of central moments, which are differences in float64, with room; an eigenvalue's grows with K."""

_SUMS = 4 * 2.0**-24
"""Relative error of sums of products in float32, with room; an eigenvalue's grows with K."""

_INSIDE = 0.49
"""How far from its code a weight may be, in steps: it rounds to this code."""


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
    moments: Moments,
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
        moments: of the inputs of all its uses, on the weight's device; central ones where biases take the mean error.
        grid: to start from.
        symmetric: the zero point stays. prescribed: the steps stay as well, only codes are free; steps that vary
            within the weights of one output channel stay anyway.
        damping: share of H's mean diagonal that is added to its diagonal: how far to distrust the samples.
        least: smallest step that may be chosen.

    Raises:
        DataError: the moments hold NaN or infinite values.
    """
    rows = geometry.rows(weight.detach()).double()
    if not bool(torch.isfinite(moments.gram).all() & torch.isfinite(moments.cross).all()):
        raise DataError(
            f"the inputs of a layer with a weight of shape {tuple(weight.shape)} hold NaN or infinite values; check "
            "the calibration data and what the network computes from it there (float32 ends at 3.4e38)"
        )
    owner = _owner(geometry, weight, grid)
    start = RowGrid(grid.scale.double().flatten(), grid.zero_point.double().flatten(), owner, grid.range, least)
    gram, wanted, pull = moments.gram, rows @ moments.cross, _pull(moments, damping)[:, None]
    with _damped(gram, pull):
        factor = Factor.of(gram)
        target = factor.solve(wanted + rows * pull[:, :, None])
        codes, found = _solve(target, gram, factor, start, free=not prescribed and start.by_row, shift=not symmetric)
    codes, found = _never_worse(rows, gram, wanted, start, codes, found)
    scale, zero_point = found.steps()
    nearest = codes - zero_point
    with _damped(gram, pull):
        best = (optimum(codes, target, gram, found) / scale - nearest).clamp(-_INSIDE, _INSIDE)
    return Solution(
        geometry.weight(codes, weight.shape).to(torch.int8),
        replace(
            grid,
            scale=found.scale.float().view_as(grid.scale),
            zero_point=found.zero_point.float().view_as(grid.zero_point),
        ),
        geometry.weight((nearest + best) * scale, weight.shape).float(),
    )


@contextmanager
def _damped(gram: Tensor, pull: Tensor) -> Iterator[None]:
    """Inside, `pull` [G, 1] is added to the diagonal of H: a copy would be the largest tensor of a wide layer."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    before = diagonal.clone()
    diagonal += pull
    try:
        yield
    finally:
        diagonal.copy_(before)


def _pull(moments: Moments, damping: float) -> Tensor:
    """What is added to H's diagonal, [G]: at least what rounding errors can take from its eigenvalues, where inputs
    depend on each other, or where an input hardly varies around a large mean and central moments are nothing but such
    errors."""
    diagonal = moments.gram.diagonal(dim1=1, dim2=2)
    power = (diagonal.clamp(min=0) + moments.mean.square()).mean(1)
    size = diagonal.shape[1]
    pull = torch.maximum(max(damping, _SUMS * size) * diagonal.mean(1), _PRECISION * size * power)
    return torch.where(pull > 0, pull, 1.0)


def _solve(
    target: Tensor, gram: Tensor, factor: Factor, grid: RowGrid, *, free: bool, shift: bool
) -> tuple[Tensor, RowGrid]:
    size = target.shape[2]
    if size <= FEW and free and len(grid.scale) == grid.owner.numel():
        return search(target, gram, grid, shift)
    wanted = target @ gram
    codes = factor.round(target, grid)
    for _ in repeat(None, PASSES):
        if free:
            grid = fit(codes, wanted, gram, grid, shift)
        codes = descend(codes, target, gram, grid)
    if size <= FEWEST:
        codes = best_codes(codes, target, gram, grid)
    return codes, fit(codes, wanted, gram, grid, shift=False) if free else grid


def _never_worse(
    rows: Tensor, gram: Tensor, wanted: Tensor, start: RowGrid, codes: Tensor, grid: RowGrid
) -> tuple[Tensor, RowGrid]:
    """Rounding to nearest where that has the smaller output error, undamped: per step, or per row where steps are
    fixed. `wanted`: w·B."""
    nearest = start.codes(rows)
    change = _error(codes, grid, gram, wanted) - _error(nearest, start, gram, wanted)
    if not start.by_row:
        return torch.where((change > 0)[:, :, None], nearest, codes), grid
    worse = grid.sums(change) > 0
    return torch.where(worse[grid.owner], nearest, codes), grid.pick(worse, start)


def _error(codes: Tensor, grid: RowGrid, gram: Tensor, wanted: Tensor) -> Tensor:
    """q·H·qᵀ − 2·w·B·qᵀ, [G, R]: the output error less what does not depend on q."""
    values = grid.values(codes)
    return ((values @ gram - 2 * wanted) * values).sum(2)


def _owner(geometry: Geometry, weight: Tensor, grid: Grid) -> Tensor:
    """Which step each element of the rows has: [G, R, 1], or [G, R, K] where it varies within rows."""
    index = torch.arange(grid.scale.numel(), device=weight.device).view_as(grid.scale)
    owner = geometry.rows(replace(grid, scale=index).spread(weight.dim())[0].expand(weight.shape))
    constant = bool((owner == owner[:, :, :1]).all())
    return owner[:, :, :1].contiguous() if constant else owner.contiguous()
