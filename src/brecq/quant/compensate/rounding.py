"""Error-compensated rounding (GPTQ, Frantar et al. 2022): what rounding does to one weight, others make good.

Each column is rounded to nearest, in the order of falling H_jj, and the columns that are still open take the value
that is best given those that are rounded. With H = VVᵀ, V upper triangular, the error is |(w − q)·V|², whose entry j
is decided with column j, as those before it are: rounding is a descent over V in place of H, from q = 0 on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brecq.quant.compensate.columns import sweep
from brecq.quant.compensate.row_grid import RowGrid


@dataclass(frozen=True)
class Factor:
    """H = VVᵀ with its rows and columns in the order that they are rounded in.

    Attributes:
        order: int64 [G, K]. upper: V, [G, K, K], upper triangular, float64.
    """

    order: Tensor
    upper: Tensor

    @classmethod
    def of(cls, gram: Tensor) -> Factor:
        """`gram`: H, [G, K, K], positive definite, float64."""
        order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
        back = order.flip(1)  # its lower factor is the upper one of the other direction
        square = gram.gather(1, back[:, :, None].expand_as(gram)).gather(2, back[:, None].expand_as(gram))
        square = torch.linalg.cholesky(square)  # one name: the largest tensors of a wide layer
        return cls(order, square.flip(1, 2))

    def solve(self, values: Tensor) -> Tensor:
        """v·H⁻¹ of `values` [G, R, K], float64."""
        inner = torch.linalg.solve_triangular(self.upper.mT, self._sorted(values), upper=False, left=False)
        return self._back(torch.linalg.solve_triangular(self.upper, inner, upper=True, left=False))

    def round(self, target: Tensor, grid: RowGrid) -> Tensor:
        """Codes q with a small error (w − q)·H·(w − q)ᵀ of `target` w [G, R, K]; all float64."""
        scale, zero_point = (self._sorted(value.expand_as(target)) for value in grid.steps())
        residual = self._sorted(target) @ self.upper
        return self._back(sweep(residual, self.upper, scale, zero_point, grid.range, zero_point))

    def _sorted(self, values: Tensor) -> Tensor:
        return values.gather(2, self.order[:, None].expand_as(values))

    def _back(self, values: Tensor) -> Tensor:
        return torch.empty_like(values).scatter_(2, self.order[:, None].expand_as(values), values)
