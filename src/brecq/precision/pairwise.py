"""Functions of a choice per variable: a constant, a value per choice, and values for pairs of choices.

The predicted loss and every cost of an allocation have this form, so the searches need no other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Choices = NDArray[np.int64]


class Pairwise:
    """f(c) = constant + Σ_k single[k][c_k] + Σ_(i,j) pairs[i,j][c_i, c_j].

    Args:
        sizes: number of choices of each variable.

    Attributes:
        single: float64 [variables, max(sizes)], infinite beyond a variable's choices.
        pairs: i < j → float64 [sizes[i], sizes[j]]; only what is not a sum of single values.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self.constant = 0.0
        self.single: Floats = np.full((len(sizes), max(sizes, default=1)), np.inf)
        for variable, size in enumerate(sizes):
            self.single[variable, :size] = 0.0
        self.pairs: dict[tuple[int, int], Floats] = {}

    def add(self, variable: int, values: Sequence[float] | Floats) -> None:
        """Add one value per choice of a variable."""
        self.single[variable, : self.sizes[variable]] += np.asarray(values, dtype=np.float64)

    def add_pair(self, i: int, j: int, values: Floats) -> None:
        """Add values [sizes[i], sizes[j]] of two different variables.

        What is a sum of a row's and a column's value goes to the single values; a pair is kept for the rest only.
        """
        if i > j:
            i, j, values = j, i, values.T
        corner = values[-1, -1]
        rows, columns = values[:, -1], values[-1, :] - corner
        self.add(i, rows)
        self.add(j, columns)
        rest = values - rows[:, None] - columns[None, :]
        # a sum of three numbers is exact only up to their rounding: what is left of it is no interaction
        rest[np.abs(rest) <= 1e-12 * np.abs(values).max(initial=0.0)] = 0.0
        if rest.any():
            self.pairs[i, j] = self.pairs.get((i, j), 0.0) + rest

    def __call__(self, choices: Choices) -> Floats:
        """Values [P] of choices [P, variables]."""
        variables = np.arange(len(self.sizes))
        total: Floats = self.constant + self.single[variables, choices].sum(-1)
        for (i, j), values in self.pairs.items():
            total = total + values[choices[:, i], choices[:, j]]
        return total

    def changes(self, choices: Choices) -> Floats:
        """By how much the value changes when one variable takes another choice: [P, variables, max(sizes)], infinite
        where there is no such choice."""
        table = np.broadcast_to(self.single, (len(choices), *self.single.shape)).copy()
        for (i, j), values in self.pairs.items():
            table[:, i, : self.sizes[i]] += values[:, choices[:, j]].T
            table[:, j, : self.sizes[j]] += values[choices[:, i], :]
        current = np.take_along_axis(table, choices[:, :, None], axis=2)
        found: Floats = table - current
        return found
