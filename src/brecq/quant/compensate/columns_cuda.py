"""The Triton kernel of `columns.decide`: a tile of rows goes through the columns of a block in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from brecq.quant.affine import IntRange

ROWS = 16
"""Rows a tile."""


def decide_on_device(
    local: Tensor, matrix: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange, codes: Tensor
) -> tuple[Tensor, Tensor]:
    """See `columns.decide`."""
    groups, rows, width = local.shape
    given = [value.contiguous() for value in (local, matrix, scale, zero_point, codes)]
    decided, moved = torch.empty_like(given[0]), torch.empty_like(given[0])
    _decide[(triton.cdiv(rows, ROWS), groups)](
        *given, decided, moved, rows, width, float(range.low), float(range.high),
        ROWS=ROWS, WIDTH=triton.next_power_of_2(width),
    )  # fmt: skip
    return decided, moved


@triton.jit
def _decide(  # type: ignore[no-untyped-def]  # the compiler takes annotations for values
    local, matrix, scale, zero_point, before, decided, moved, rows, width, low, high,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    start = (group * rows + row) * width  # of each row in memory
    is_row = row < rows
    tile = tl.load(
        local + start[:, None] + column[None, :], mask=is_row[:, None] & (column < width)[None, :], other=0.0
    )
    for j in range(width):
        s = tl.load(scale + start + j, mask=is_row, other=1.0)
        z = tl.load(zero_point + start + j, mask=is_row, other=0.0)
        line = tl.load(matrix + (group * width + j) * width + column, mask=column < width, other=0.0)
        diagonal = tl.load(matrix + (group * width + j) * width + j)
        value = tl.sum(tl.where(column[None, :] == j, tile, 0.0), axis=1)
        old = tl.load(before + start + j, mask=is_row, other=0.0)
        value = (old - z) * s + value / diagonal
        steps = value / s
        # adding and taking away 1.5·2⁵² rounds to the nearest whole number, ties to the even one
        code = (steps + 6755399441055744.0) - 6755399441055744.0 + z
        code = tl.minimum(tl.maximum(code, low), high)
        step = (code - old) * s
        tl.store(decided + start + j, code, mask=is_row)
        tl.store(moved + start + j, step, mask=is_row)
        tile -= step[:, None] * line[None, :]
