"""Small least-squares problems for codes."""

from __future__ import annotations

import torch
from torch import Tensor

from brecq.quant.affine import IntRange
from brecq.quant.compensate.row_grid import RowGrid
from brecq.quant.ranges import weight_range


def problem(seed: int, groups: int, rows: int, size: int, bits: int) -> tuple[Tensor, Tensor, RowGrid]:
    """Target rows, correlated inputs' Gram matrices, and a grid by range search; float64."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(groups, rows, size, generator=generator)
    mixing = torch.randn(groups, size, size, generator=generator) + 2
    gram = mixing @ mixing.mT / size + 0.01 * torch.eye(size)
    range = IntRange.weights(bits, symmetric=False)
    scale, zero_point = weight_range(target.flatten(0, 1), range)
    owner = torch.arange(groups * rows).view(groups, rows, 1)
    return target.double(), gram.double(), RowGrid(scale.double(), zero_point.double(), owner, range)


def error(codes: Tensor, target: Tensor, gram: Tensor, grid: RowGrid) -> Tensor:
    """(w − q)·H·(w − q)ᵀ, [G, R]."""
    missing = target - grid.values(codes)
    return ((missing @ gram) * missing).sum(2)
