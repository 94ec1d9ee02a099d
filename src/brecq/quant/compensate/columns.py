"""Column after column, where each decision changes what the later ones see.

    code of q_j + l_j/M_jj,    step e_j = change of q_j,    later columns of l −= e_j·M_j

On the CPU each column is a handful of vector operations. On CUDA these would be a handful of launches, thousands of
times for nothing but a few rows each: there, one kernel takes a tile of rows through all columns of a block.
"""

from __future__ import annotations

import builtins

import torch
from torch import Tensor

from brecq.quant.affine import IntRange
from brecq.quant.fusion import backend, give_up

COLUMNS = 128
"""Columns of a block, whose steps are handed on together: one matrix product for all later ones."""


def sweep(
    residual: Tensor, matrix: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange, codes: Tensor
) -> Tensor:
    """Decide on all columns.

    Args:
        residual: l, [G, R, K], which is used up. matrix: M, [G, K, K], of which nothing below the diagonal is read.
        scale, zero_point: [G, R, K]. codes: q, those before, [G, R, K]. All float64.

    Returns:
        Codes, float64 [G, R, K].
    """
    codes, size = codes.clone(), codes.shape[2]
    for first in builtins.range(0, size, COLUMNS):
        last = min(first + COLUMNS, size)
        now = slice(first, last)
        local, s, z, before = (value[:, :, now] for value in (residual, scale, zero_point, codes))
        codes[:, :, now], moved = decide(local, matrix[:, now, now], s, z, range, before)
        residual[:, :, last:] -= moved @ matrix[:, now, last:]
    return codes


def decide(
    local: Tensor, matrix: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange, codes: Tensor
) -> tuple[Tensor, Tensor]:
    """The codes of a block of columns, and the step e of each.

    Args:
        local: l, [G, R, W]. matrix: M, [G, W, W]. scale, zero_point, codes: [G, R, W]. All float64.

    Returns:
        Codes and e, float64 [G, R, W].
    """
    if local.is_cuda and backend(local.device) == "compiled":
        try:
            from brecq.quant.compensate.columns_cuda import decide_on_device

            return decide_on_device(local, matrix, scale, zero_point, range, codes)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            give_up("cuda", error)
    return _one_by_one(local.clone(), matrix, scale, zero_point, range, codes)


def _one_by_one(
    local: Tensor, matrix: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange, codes: Tensor
) -> tuple[Tensor, Tensor]:
    decided, moved = torch.empty_like(local), torch.empty_like(local)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    columns = zip(codes.unbind(2), scale.unbind(2), zero_point.unbind(2), strict=True)
    for j, (before, s, z) in enumerate(columns):
        value = (before - z) * s + local[:, :, j] / diagonal[:, j, None]
        code = ((value / s).round() + z).clamp(range.low, range.high)
        step = (code - before) * s
        decided[:, :, j], moved[:, :, j] = code, step
        local[:, :, j + 1 :].addcmul_(step[:, :, None], matrix[:, None, j, j + 1 :], value=-1)
    return decided, moved
