"""Rows of few weights (depthwise layers): the step and zero point by trial, the codes exactly.

With nine weights a row, the codes that are good together depend on the step more than on anything else, and an edge
detector, whose weights sum to zero, is lost if its codes do not. Coordinate descent finds the codes for every step and
zero point that is tried; the best ones are fitted, and their codes searched exhaustively.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brecq.quant.compensate.descent import descend
from brecq.quant.compensate.exact import FEWEST, best_codes
from brecq.quant.compensate.row_grid import RowGrid, fit, products

FEW = 32
"""Most weights a row may have to be searched."""

FACTORS = 62
"""Steps tried, evenly spaced on a logarithmic scale."""

NARROWEST, WIDEST = 0.4, 1.6
"""The ends of that scale, in units of the step that rounds each weight alone best."""

ROUNDS = 2
"""How often steps are fitted and codes searched in turns."""

_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Weights of the rows that are tried at a time, by device type."""


def search(target: Tensor, gram: Tensor, grid: RowGrid, shift: bool) -> tuple[Tensor, RowGrid]:
    """Codes [G, R, K] and steps for rows that have a step each (S = G·R); `shift`: zero points are free as well.

    Args: as `descend`.
    """
    groups, rows, size = target.shape
    spread = torch.linspace(0, 1, FACTORS, dtype=target.dtype, device=target.device)
    factors = NARROWEST * (WIDEST / NARROWEST) ** spread
    shifts = (0, -1, 1) if shift else (0,)
    codes, error = target.new_zeros(target.shape), target.new_full((groups, rows), torch.inf)
    scale, zero_point = (value[grid.owner][:, :, 0] for value in (grid.scale, grid.zero_point))
    base_scale, base_zero = scale, zero_point
    for part in factors.split(max(1, _CHUNK[target.device.type] // target.numel())):
        for offset in shifts:
            tried = len(part)
            s = (base_scale[:, :, None] * part).clamp(min=grid.least)
            z = (base_zero + offset).clamp(grid.range.low, grid.range.high)[:, :, None].expand_as(s)
            owner = torch.arange(s.numel(), device=s.device).view(groups, rows * tried, 1)
            trial = RowGrid(s.flatten(), z.flatten(), owner, grid.range)
            wanted = target.repeat_interleave(tried, dim=1)
            found = descend(descend(trial.codes(wanted), wanted, gram, trial), wanted, gram, trial)
            missing = wanted - trial.values(found)
            errors = ((missing @ gram) * missing).sum(2).view(groups, rows, tried)
            least, at = errors.min(2)
            better = least < error
            error = torch.where(better, least, error)
            pick = at[:, :, None]
            scale = torch.where(better, s.gather(2, pick)[:, :, 0], scale)
            zero_point = torch.where(better, z.gather(2, pick)[:, :, 0], zero_point)
            chosen = found.view(groups, rows, tried, size).gather(2, pick[..., None].expand(-1, -1, 1, size))[:, :, 0]
            codes = torch.where(better[:, :, None], chosen, codes)
    owner = torch.arange(groups * rows, device=target.device).view(groups, rows, 1)
    best = RowGrid(scale.flatten(), zero_point.flatten(), owner, grid.range, grid.least)
    wanted = target @ gram
    for _ in range(ROUNDS):
        best = fit(products(codes, wanted, gram, best), best, shift)
        codes = best_codes(codes, target, gram, best) if size <= FEWEST else descend(codes, target, gram, best)
    return codes, fit(products(codes, wanted, gram, best), best, shift=False)
