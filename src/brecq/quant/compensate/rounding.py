"""Error-compensated rounding (GPTQ, Frantar et al. 2022): what rounding does to one weight, others make good."""

from __future__ import annotations

import torch
from torch import Tensor

from brecq.quant.compensate.columns import decide
from brecq.quant.compensate.row_grid import RowGrid

COLUMNS = 128
"""Columns whose errors are handed on together: one matrix product for all later ones."""


def compensated_rounding(target: Tensor, gram: Tensor, grid: RowGrid) -> Tensor:
    """Codes q with a small error (w − q)·H·(w − q)ᵀ, column by column in the order of falling H_jj.

    Each column is rounded to nearest, and the columns that are still open take the value that is best given those
    that are rounded: w_{k≥j} −= (w_j − q_j)/U_jj·U_{j,k≥j}, with H⁻¹ = UᵀU.

    Args:
        target: w, [G, R, K]. gram: H, [G, K, K], positive definite. Both float64.

    Returns:
        Codes, float64 [G, R, K].
    """
    order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    size = order.shape[1]
    square = gram.gather(1, order[:, :, None].expand_as(gram)).gather(2, order[:, None].expand_as(gram))
    for factor in (torch.linalg.cholesky, torch.cholesky_inverse):  # one name: the largest tensors of a wide layer
        square = factor(square)
    upper = torch.linalg.cholesky(square, upper=True)
    del square
    columns = order[:, None].expand_as(target)
    open_ = target.gather(2, columns)
    scale, zero_point = (value.expand_as(target).gather(2, columns) for value in grid.steps())
    codes = torch.empty_like(open_)
    for first in range(0, size, COLUMNS):
        last = min(first + COLUMNS, size)
        now = slice(first, last)
        block, s, z = (value[:, :, now] for value in (open_, scale, zero_point))
        codes[:, :, now], errors = decide(block, upper[:, now, now], s, z, grid.range)
        open_[:, :, last:] -= errors @ upper[:, now, last:]
    return torch.empty_like(codes).scatter_(2, columns, codes)
