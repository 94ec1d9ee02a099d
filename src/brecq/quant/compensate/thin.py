"""The output error from the patches themselves, X [G, K, N] in units where H = XXᵀ: for layers that see fewer patches
than they have inputs, whose H would be K × K numbers of rank N.

What codes make of the patches, q·X, is N numbers a row; all else is products with it. Columns are taken block by
block, so that beside patches, weights and codes nothing is as large as they are.

Compensated rounding: once some columns are decided, the best change of the others is regularised least squares,

    δ = r·(XᵀX + λ)⁻¹·Xᵀ      r: what the output lacks, X: the columns that are open

and what a block's columns cost when all later ones do their best is M = λ·(1 − X·(XᵀX + λ)⁻¹·Xᵀ)⁻¹ for the block's X,
so that within a block it is the descent over the factor of M that `rounding.py` makes over that of H.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from brecq.quant.compensate.columns import COLUMNS, sweep
from brecq.quant.compensate.objective import beside
from brecq.quant.compensate.row_grid import Columns, Products, RowGrid, columns

MOST_COLUMNS = 1024
"""Of a block of compensated rounding, which has as many columns as there are patches if these are fewer: so many
columns later XᵀX is factored anew."""


class Thin:
    """See `objective.Layer`.

    Args:
        patches: of x_q, reference: of x_f, [G, K, N], float32. root: float64 [N]; patches times root are X.
        pull: λ, float64 [G].
    """

    def __init__(self, patches: Tensor, reference: Tensor, root: Tensor, pull: Tensor) -> None:
        self.patches, self.reference, self.root = patches, reference, root
        self.pull = pull[:, None, None]
        self.size, self.count = patches.shape[1:]
        power, total = [], torch.diag_embed(pull[:, None].expand(-1, self.count)).contiguous()
        for at in self.blocks():
            x = self.columns(at)
            power.append(x.square().sum(2))
            total += x.mT @ x
        self.total = total  # XᵀX + λ
        self.order = torch.cat(power, dim=1).argsort(dim=1, descending=True, stable=True)

    @property
    def width(self) -> int:
        """See `objective.Layer`."""
        return widest(self.count)

    def on(self, rows: Tensor) -> ThinRows:
        return ThinRows(self, rows)

    def blocks(self) -> Iterator[slice]:
        """All columns in their own order."""
        for first in range(0, self.size, COLUMNS):
            yield slice(first, min(first + COLUMNS, self.size))

    def columns(self, at: Columns) -> Tensor:
        """X of some columns, float64 [G, W, N]."""
        return columns(self.patches.mT, at).mT.double() * self.root

    def falling(self) -> Iterator[Tensor]:
        """All columns, those of the largest H_jj first: indices [G, W], block by block."""
        yield from self.order.split(min(max(self.count, COLUMNS), MOST_COLUMNS), dim=1)


def widest(count: int) -> int:
    """Of so many patches and a block of columns, the more."""
    return max(count, COLUMNS)


class ThinRows:
    """See `objective.Objective`. Codes are int8."""

    def __init__(self, layer: Thin, rows: Tensor) -> None:
        self.layer, self.rows = layer, rows
        self.aim = rows.new_zeros(*rows.shape[:2], layer.count, dtype=torch.float64)  # w·X_f
        for at in layer.blocks():
            self.aim += rows[:, :, at].double() @ (layer.reference[:, at].double() * layer.root)

    def round(self, grid: RowGrid) -> Tensor:
        codes = torch.empty_like(self.rows, dtype=torch.int8)
        missing, gram, pull = self.aim.clone(), self.layer.total.clone(), self.layer.pull
        for at in self.layer.blocks():
            missing -= self.rows[:, :, at].double() @ self.layer.columns(at)
        for order in self.layer.falling():
            x, rows = self.layer.columns(order), columns(self.rows, order).double()
            scale, zero_point = (value.expand_as(rows) for value in grid.steps(order))
            half = torch.linalg.cholesky(gram)
            inner = torch.linalg.solve_triangular(half, x.mT, upper=False)
            left = torch.linalg.cholesky(torch.eye(x.shape[1], dtype=x.dtype, device=x.device) - inner.mT @ inner)
            upper = pull.sqrt() * _inverse(left).mT  # M = upper·upperᵀ
            change = missing @ torch.linalg.solve_triangular(half.mT, inner, upper=True)
            found = sweep((rows + change) @ upper, upper, scale, zero_point, grid.range, zero_point)
            missing -= ((found - zero_point) * scale - rows) @ x
            gram -= x.mT @ x
            codes.scatter_(2, order[:, None].expand_as(found), found.to(codes.dtype))
        return codes

    def descend(self, codes: Tensor, grid: RowGrid) -> Tensor:
        changed, pull = codes.clone(), self.layer.pull
        missing = self.aim - self._image(codes, grid)
        for at in self.layer.blocks():
            x, before = self.layer.columns(at), codes[:, :, at].double()
            scale, zero_point = (value.expand_as(before) for value in grid.steps(at))
            local = missing @ x.mT + pull * (self.rows[:, :, at] - (before - zero_point) * scale)
            gram = x @ x.mT
            gram.diagonal(dim1=1, dim2=2).add_(pull[:, 0])
            found = sweep(local, gram, scale, zero_point, grid.range, before)
            missing -= ((found - before) * scale) @ x
            changed[:, :, at] = found.to(codes.dtype)
        return changed

    def products(self, codes: Tensor, grid: RowGrid) -> Products:
        groups, rows = codes.shape[:2]
        image, ones = torch.zeros_like(self.aim), self.aim.new_zeros(groups, 1, self.layer.count)
        along, total, norm, shift = (self.aim.new_zeros(groups, rows) for _ in range(4))
        for at in self.layer.blocks():
            x, w = self.layer.columns(at), self.rows[:, :, at].double()
            k = codes[:, :, at] - grid.steps(at)[1]
            image += k @ x
            ones += x.sum(1, keepdim=True)
            along, total = along + (w * k).sum(2), total + w.sum(2)
            norm, shift = norm + k.square().sum(2), shift + k.sum(2)
        pull = self.layer.pull[:, 0]
        return Products(
            (self.aim * image).sum(2) + pull * along,
            (self.aim * ones).sum(2) + pull * total,
            image.square().sum(2) + pull * norm,
            (image * ones).sum(2) + pull * shift,
            (ones.square().sum(2) + pull * self.layer.size).expand(groups, rows),
        )

    def nearest(self, grid: RowGrid) -> Tensor:
        codes = torch.empty_like(self.rows, dtype=torch.int8)
        for at in self.layer.blocks():
            codes[:, :, at] = grid.codes(self.rows[:, :, at].double(), at).to(codes.dtype)
        return codes

    def errors(self, codes: Tensor, grid: RowGrid) -> Tensor:
        return (self.aim - self._image(codes, grid)).square().sum(2)

    def near(self, codes: Tensor, grid: RowGrid) -> Tensor:
        found, pull = torch.empty_like(self.rows, dtype=torch.float32), self.layer.pull
        missing = self.aim - self._image(codes, grid)
        for at in self.layer.blocks():
            x, values = self.layer.columns(at), grid.values(codes[:, :, at], at)
            slope = missing @ x.mT + pull * (self.rows[:, :, at] - values)
            best = values + slope / (x.square().sum(2)[:, None] + pull)
            found[:, :, at] = beside(codes[:, :, at], best, *grid.steps(at))
        return found

    def _image(self, codes: Tensor, grid: RowGrid) -> Tensor:
        """q·X, [G, R, N]."""
        image = torch.zeros_like(self.aim)
        for at in self.layer.blocks():
            image += grid.values(codes[:, :, at], at) @ self.layer.columns(at)
        return image


def _inverse(lower: Tensor) -> Tensor:
    one = torch.eye(lower.shape[1], dtype=lower.dtype, device=lower.device).expand_as(lower)
    return torch.linalg.solve_triangular(lower, one, upper=False)
