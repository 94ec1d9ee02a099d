"""Compensated start: codes, steps and bias of a layer in closed form, from the moments of its inputs.

    w* = w·B·H⁻¹                 the weight that comes closest to the float layer's output (GPTAQ, Li et al. 2025)
    compensated rounding of w*, then in turns the best step and zero point for the codes, and coordinate descent
    b += E[w·x_f − q·x_q]

The result is never worse than rounding to nearest in the layer's output error on these inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from brecq.errors import DataError
from brecq.quant.affine import IntRange, per_channel
from brecq.quant.compensate.descent import descend, optimum
from brecq.quant.compensate.exact import best_codes
from brecq.quant.compensate.geometry import Geometry
from brecq.quant.compensate.grid import Grid, fit
from brecq.quant.compensate.moments import Moments
from brecq.quant.compensate.rounding import compensated_rounding
from brecq.quant.compensate.search import FEW, search
from brecq.quant.ranges import MIN_SCALE

PASSES = 3
"""Passes of coordinate descent."""

_INSIDE = 0.49
"""How far from its code a weight may be, in steps: it rounds to this code."""


@dataclass(frozen=True)
class Solution:
    """What a layer's fake-quantizers start with.

    Attributes:
        codes: int8, the weight's shape.
        weight: float32, the weight's shape: for each weight the real value that is best given all other codes, as
            near to it as one that rounds to its code can be.
        scale, zero_point: float32 [S].
        bias_shift: float32 [output channels], to be added to the bias; `None` for a layer without.
    """

    codes: Tensor
    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    bias_shift: Tensor | None


def compensate(
    weight: Tensor,
    geometry: Geometry,
    moments: Moments,
    scale: Tensor,
    zero_point: Tensor,
    range: IntRange,
    *,
    axis: int | None,
    symmetric: bool,
    bias: bool,
    prescribed: bool = False,
    damping: float = 0.01,
    least: float = MIN_SCALE,
) -> Solution:
    """The closed-form start of one weight.

    Args:
        weight: float, of any convolution or linear layer. geometry: of one of its uses.
        moments: of the inputs of all its uses, on the weight's device.
        scale, zero_point: [S] float32, from range search, or prescribed.
        axis: dimension of the weight along which the S steps vary; `None`: one for the whole tensor.
        symmetric: the zero point stays. prescribed: the step stays, too; only codes are free.
        bias: the layer has a bias that takes the mean of the error.
        damping: share of H's mean diagonal that is added to its diagonal: how far to distrust the samples.
        least: smallest step that may be chosen.

    Raises:
        DataError: the moments hold NaN or infinite values.
    """
    rows = geometry.rows(weight.detach()).double()
    used = moments.central() if bias else moments
    if not bool(torch.isfinite(used.gram).all() & torch.isfinite(used.cross).all()):
        raise DataError(
            f"the inputs of a layer with a weight of shape {tuple(weight.shape)} hold NaN or infinite values; check "
            "the calibration data and that the network gives finite outputs on it"
        )
    start = Grid(scale.double(), zero_point.double(), _owner(geometry, weight, len(scale), axis), range, least)
    mean = used.gram.diagonal(dim1=1, dim2=2).mean(1)
    pull = torch.where(mean > 0, damping * mean, 1.0)[:, None, None] * torch.eye(rows.shape[2]).to(rows)
    gram = used.gram + pull
    target = torch.linalg.solve(gram, rows @ (used.cross + pull), left=False)
    codes, grid = _solve(target, gram, start, free=not prescribed and start.by_row, shift=not symmetric)
    codes, grid = _never_worse(rows, used, start, codes, grid)
    scale_, zero_ = grid.steps()
    nearest = codes - zero_
    best = (optimum(codes, target, gram, grid) / scale_ - nearest).clamp(-_INSIDE, _INSIDE)
    shift = moments.bias_shift(rows, grid.values(codes)).float() if bias else None
    return Solution(
        geometry.weight(codes, weight.shape).to(torch.int8),
        geometry.weight((nearest + best) * scale_, weight.shape).float(),
        grid.scale.float(),
        grid.zero_point.float(),
        shift,
    )


def _solve(target: Tensor, gram: Tensor, grid: Grid, *, free: bool, shift: bool) -> tuple[Tensor, Grid]:
    few = target.shape[2] <= FEW
    if few and free and len(grid.scale) == grid.owner.numel():
        return search(target, gram, grid, shift)
    wanted = target @ gram
    codes = compensated_rounding(target, gram, grid)
    for _ in repeat(None, PASSES):
        if free:
            grid = fit(codes, wanted, gram, grid, shift)
        codes = descend(codes, target, gram, grid)
    if few:
        codes = best_codes(codes, target, gram, grid)
    return codes, fit(codes, wanted, gram, grid, shift=False) if free else grid


def _never_worse(rows: Tensor, moments: Moments, start: Grid, codes: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """Rounding to nearest where that has the smaller output error, undamped: per step, or per row where steps are
    fixed."""
    nearest = start.codes(rows)
    wanted = rows @ moments.cross
    change = _error(codes, grid, moments.gram, wanted) - _error(nearest, start, moments.gram, wanted)
    if not start.by_row:
        return torch.where((change > 0)[:, :, None], nearest, codes), grid
    worse = grid.sums(change) > 0
    return torch.where(worse[grid.owner], nearest, codes), grid.pick(worse, start)


def _error(codes: Tensor, grid: Grid, gram: Tensor, wanted: Tensor) -> Tensor:
    """q·H·qᵀ − 2·w·B·qᵀ, [G, R]: the output error less what does not depend on q."""
    values = grid.values(codes)
    return ((values @ gram - 2 * wanted) * values).sum(2)


def _owner(geometry: Geometry, weight: Tensor, steps: int, axis: int | None) -> Tensor:
    """Which step each element of the rows has: [G, R, 1], or [G, R, K] where it varies within rows."""
    index = torch.arange(steps, device=weight.device)
    whole = index.expand(weight.shape) if axis is None else per_channel(index, weight.dim(), axis).expand(weight.shape)
    owner = geometry.rows(whole)
    constant = bool((owner == owner[:, :, :1]).all())
    return owner[:, :, :1].contiguous() if constant else owner.contiguous()
