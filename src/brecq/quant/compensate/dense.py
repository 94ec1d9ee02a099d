"""The output error from second moments: H and B, [G, K, K]. For layers that see more patches than they have inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from brecq.quant.compensate.descent import descend, optimum
from brecq.quant.compensate.exact import best_codes
from brecq.quant.compensate.objective import beside
from brecq.quant.compensate.rounding import Factor
from brecq.quant.compensate.row_grid import Products, RowGrid, products
from brecq.quant.compensate.search import search


class Dense:
    """See `objective.Layer`.

    Args:
        gram: H. cross: B. Both [G, K, K]. pull: what is added to H's diagonal, [G]. All float64.
    """

    def __init__(self, gram: Tensor, cross: Tensor, pull: Tensor) -> None:
        self.gram, self.cross, self.pull = gram, cross, pull[:, None]
        with self.damped():
            self.factor = Factor.of(gram)

    @property
    def width(self) -> int:
        """See `objective.Layer`."""
        return self.gram.shape[1]

    def on(self, rows: Tensor) -> DenseRows:
        return DenseRows(self, rows.double())

    @contextmanager
    def damped(self) -> Iterator[Tensor]:
        """Inside, the damping is added to the diagonal of H: a copy would be the largest tensor of a wide layer."""
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        before = diagonal.clone()
        diagonal += self.pull
        try:
            yield self.gram
        finally:
            diagonal.copy_(before)


class DenseRows:
    """See `objective.Objective`. Codes are float64. `target`: w* = (w·B + λ·w)·(H + λ)⁻¹, the best of all weights."""

    def __init__(self, layer: Dense, rows: Tensor) -> None:
        self.layer, self.rows = layer, rows
        self.wanted = rows @ layer.cross
        self.target = layer.factor.solve(self.wanted + rows * layer.pull[:, :, None])
        with layer.damped() as gram:
            self.pressed = self.target @ gram

    @property
    def size(self) -> int:
        """K."""
        return self.layer.width

    def round(self, grid: RowGrid) -> Tensor:
        return self.layer.factor.round(self.target, grid)

    def descend(self, codes: Tensor, grid: RowGrid) -> Tensor:
        with self.layer.damped() as gram:
            return descend(codes, self.target, gram, grid)

    def products(self, codes: Tensor, grid: RowGrid) -> Products:
        with self.layer.damped() as gram:
            return products(codes, self.pressed, gram, grid)

    def nearest(self, grid: RowGrid) -> Tensor:
        return grid.codes(self.rows)

    def errors(self, codes: Tensor, grid: RowGrid) -> Tensor:
        values = grid.values(codes)
        return ((values @ self.layer.gram - 2 * self.wanted) * values).sum(2)

    def near(self, codes: Tensor, grid: RowGrid) -> Tensor:
        with self.layer.damped() as gram:
            best = optimum(codes, self.target, gram, grid)
        return beside(codes, best, *grid.steps())

    def search(self, grid: RowGrid, *, shift: bool) -> tuple[Tensor, RowGrid]:
        """Steps by trial and codes, see `search`: for rows of few weights."""
        with self.layer.damped() as gram:
            return search(self.target, gram, grid, shift)

    def exact(self, codes: Tensor, grid: RowGrid) -> Tensor:
        """The best codes of all, see `exact`: for rows of very few weights."""
        with self.layer.damped() as gram:
            return best_codes(codes, self.target, gram, grid)
