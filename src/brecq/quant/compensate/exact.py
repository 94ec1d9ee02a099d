"""The best codes of all for rows of few weights: branch and bound over the integers (a sphere decoder).

With H = UᵀU the error is Σ_i (Σ_{j≥i} U_ij·(w_j − q_j))²: from the last weight on, each decision adds a term that
later ones cannot lower. What exceeds the error of codes that are known is cut off. All rows are searched at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brecq.quant.compensate.row_grid import RowGrid

FEWEST = 12
"""Most weights a row may have to be searched exhaustively."""

NODES = 5_000
"""Partial decisions that are looked at per row, on average; beyond them the best codes found so far are taken."""

_WIDTH = 4
"""Partial decisions per row, on average, that are extended at a time: few, so that complete codes are soon known."""


def best_codes(codes: Tensor, target: Tensor, gram: Tensor, grid: RowGrid, nodes: int = NODES) -> Tensor:
    """Codes with the smallest (w − q)·H·(w − q)ᵀ, unless the search is given up; never worse than `codes`.

    Args:
        codes: [G, R, K], to start from: the better they are, the more is cut off. target: w, [G, R, K]. gram: H,
            [G, K, K], positive definite. All float64.

    Returns:
        Codes, float64 [G, R, K].
    """
    groups, rows, size = codes.shape
    order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, stable=True)  # the largest is decided first
    sorted_gram = gram.gather(1, order[:, :, None].expand_as(gram)).gather(2, order[:, None].expand_as(gram))
    upper = torch.linalg.cholesky(sorted_gram, upper=True)
    columns = order[:, None].expand_as(codes)
    w, best, scale, zero_point = (
        value.expand_as(codes).gather(2, columns).flatten(0, 1) for value in (target, codes, *grid.steps())
    )
    group = torch.arange(groups, device=codes.device).repeat_interleave(rows)
    best = best.clone()
    error = w - (best - zero_point) * scale
    bound = (error[:, None] @ upper.mT[group])[:, 0].square().sum(1)
    levels = torch.arange(grid.range.low, grid.range.high + 1, dtype=codes.dtype, device=codes.device)
    everything = torch.arange(len(w), device=codes.device)
    stack = [(size, everything, w.new_zeros(len(w)), torch.zeros_like(w))]
    width = max(64, _WIDTH * len(w))
    left = nodes * len(w)
    while stack and left > 0:
        level, row, cost, chosen = stack.pop()
        alive = cost < bound[row]
        row, cost, chosen = row[alive], cost[alive], chosen[alive]
        if level == 0:
            _keep(row, cost, chosen, bound, best)
            continue
        i = level - 1
        left -= len(row) * len(levels)
        edge = upper[group[row], i]
        behind = (
            edge[:, level:] * (w[row, level:] - (chosen[:, level:] - zero_point[row, level:]) * scale[row, level:])
        ).sum(1)
        here = w[row, i, None] - (levels - zero_point[row, i, None]) * scale[row, i, None]
        costs = cost[:, None] + (edge[:, i, None] * here + behind[:, None]).square()
        parent, choice = (costs < bound[row][:, None] * (1 - 1e-9)).nonzero(as_tuple=True)
        cost = costs[parent, choice]
        promising = (cost / bound[row[parent]]).argsort(descending=True, stable=True)  # popped last in, first out
        parent, choice, cost = parent[promising], choice[promising], cost[promising]
        extended = chosen[parent]
        extended[:, i] = levels[choice]
        grown = [part.split(width) for part in (row[parent], cost, extended)]
        stack += [(i, *part) for part in zip(*grown, strict=True)]
    return torch.empty_like(codes).scatter_(2, columns, best.view_as(codes))


def _keep(row: Tensor, cost: Tensor, chosen: Tensor, bound: Tensor, best: Tensor) -> None:
    """Take over complete codes, of each row the cheapest."""
    if len(row) == 0:
        return
    cost, order = cost.sort(stable=True)
    row, chosen = row[order], chosen[order]
    first = torch.full_like(bound, len(row), dtype=torch.long)
    first.scatter_reduce_(0, row, torch.arange(len(row), device=row.device), "amin")
    found = first < len(row)
    bound[found] = cost[first[found]]
    best[found] = chosen[first[found]]
