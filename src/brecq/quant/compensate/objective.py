"""What the closed form asks about the output error of some rows of a weight, whatever it is computed from.

    |w − q|² in the damped H, but for a constant:   q·(H + λ)·qᵀ − 2·(w·B + λ·w)·qᵀ

`dense.py` computes it from H and B, K × K numbers; `thin.py` from the patches themselves, K × N, where these are few.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from brecq.quant.compensate.row_grid import Products, RowGrid

INSIDE = 0.49
"""How far from its code a weight may be, in steps: it rounds to this code."""


class Objective(Protocol):
    """Of rows [G, R, K]. Codes have the type that `round` returns them in."""

    def round(self, grid: RowGrid) -> Tensor:
        """Codes with a small error, column after column: what rounding does to one, those to come make good."""

    def descend(self, codes: Tensor, grid: RowGrid) -> Tensor:
        """One pass of coordinate descent; the error never grows."""

    def products(self, codes: Tensor, grid: RowGrid) -> Products:
        """What `row_grid.fit` needs to know of codes."""

    def nearest(self, grid: RowGrid) -> Tensor:
        """The codes of the rows rounded to nearest."""

    def errors(self, codes: Tensor, grid: RowGrid) -> Tensor:
        """The output error without damping, but for a constant of each row: float64 [G, R]."""

    def near(self, codes: Tensor, grid: RowGrid) -> Tensor:
        """For each weight the real value that is best given all other codes, as near to it as one that rounds to its
        code can be: float32 [G, R, K]."""


class Layer(Protocol):
    """A layer's inputs, ready to be asked about any of its rows."""

    @property
    def width(self) -> int:
        """How many numbers a row is worked on in."""

    def on(self, rows: Tensor) -> Objective:
        """The objective of `rows`, float [G, R, K]."""


def beside(codes: Tensor, best: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """See `Objective.near`; `best`: the values that are best, float64, of the codes' shape."""
    nearest = codes - zero_point
    return ((nearest + (best / scale - nearest).clamp(-INSIDE, INSIDE)) * scale).float()
