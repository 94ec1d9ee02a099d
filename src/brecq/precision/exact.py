"""The exact search: a multiple-choice program, solved by HiGHS through scipy.

    minimize  Σ loss[k,b]·x[k,b] + Σ loss[k,b,k',b']·z      subject to  Σ_b x[k,b] = 1,  costs ≤ limits,  x in {0, 1}

A product z = x[k,b]·x[k',b'] is made linear in one of two ways: for a single pair of choices by z ≤ x, z ≤ x',
z ≥ x + x' − 1; for a whole table of them by its margins, Σ_b' z[b,b'] = x[b] and Σ_b z[b,b'] = x'[b'].
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from brecq.errors import BudgetError
from brecq.precision.budget import Cost
from brecq.precision.pairwise import Choices, Floats, Pairwise
from brecq.precision.problem import Problem, infeasible

GAP = 1e-6
"""Relative optimality gap that the solver stops at."""

ATTEMPTS = 20
"""How often a solution that misses a limit by the solver's tolerance is followed by a tighter program."""


def solve(problem: Problem) -> Choices:
    """The allocation of the least predicted loss, choices [knobs].

    Raises:
        BudgetError: the limits cannot be met; the message states what can.
    """
    check_reachable(problem)
    limits = dict(problem.limits)
    for _ in range(ATTEMPTS):
        program = _Program(problem.loss, [(problem.costs[cost], limit) for cost, limit in limits.items()])
        found = program.solve()
        if found is None:
            break
        over = {cost: float(problem.costs[cost](found[None])[0]) - limits_ for cost, limits_ in problem.limits.items()}
        if all(value <= 0 for value in over.values()):
            return found
        # HiGHS holds constraints to 1e-6: take off what it overshot, so that limits hold to the byte
        limits = {cost: limit - 2 * max(over[cost], 0.0) for cost, limit in limits.items()}
    raise BudgetError("no allocation fits into all budgets at once; raise one of them, or allow fewer bits (--bits)")


def reachable(problem: Problem, cost: Cost, limits: Mapping[Cost, float] | None = None) -> tuple[float, float] | None:
    """The least and the greatest value of a cost under other limits, `None` where those cannot be met."""
    function = problem.costs[cost]
    others = [(problem.costs[name], limit) for name, limit in (limits or {}).items()]
    ends = []
    for sign in (1.0, -1.0):
        found = _Program(_scaled(function, sign), others).solve()
        if found is None:
            return None
        ends.append(float(function(found[None])[0]))
    return ends[0], ends[1]


def check_reachable(problem: Problem) -> None:
    """Raise `BudgetError` where the limits cannot be met, each alone or all together."""
    met: dict[Cost, float] = {}
    for cost, limit in problem.limits.items():
        ends = reachable(problem, cost, met)
        assert ends is not None
        low, high = ends
        if low > limit:
            others = [str(name) for name in met]
            raise infeasible(cost, limit, low, high, others)
        met[cost] = limit


def _scaled(function: Pairwise, factor: float) -> Pairwise:
    found = Pairwise(function.sizes)
    for variable, size in enumerate(function.sizes):
        found.add(variable, factor * function.single[variable, :size])
    found.pairs = {pair: factor * values for pair, values in function.pairs.items()}
    return found


class _Program:
    """One integer program: an objective and limits, all pairwise functions of the same variables."""

    def __init__(self, objective: Pairwise, limits: list[tuple[Pairwise, float]]) -> None:
        self.sizes = objective.sizes
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)]).astype(int)
        self.columns = int(self.offsets[-1])
        self.rows: list[tuple[list[int], list[float], float, float]] = []
        self.products: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
        functions = [objective, *(function for function, _ in limits)]
        for k, size in enumerate(self.sizes):
            self.rows.append(([self._x(k, b) for b in range(size)], [1.0] * size, 1.0, 1.0))
        for pair in dict.fromkeys(pair for function in functions for pair in function.pairs):
            used = sum((np.abs(f.pairs[pair]) for f in functions if pair in f.pairs), np.zeros(()))
            self._linearize(pair, np.asarray(used))
        weights = self._coefficients(objective)
        scale = np.abs(weights).max(initial=0.0)
        self.objective = weights / (scale or 1.0)
        for function, limit in limits:
            room = limit - function.constant
            row = self._coefficients(function)
            # whole bytes stay whole, so that the solver's absolute tolerance cannot miss one
            factor = max(1.0, np.abs(row).max(initial=0.0) / 1e6)
            used_columns = np.flatnonzero(row)
            self.rows.append((used_columns.tolist(), (row[used_columns] / factor).tolist(), -np.inf, room / factor))

    def solve(self) -> Choices | None:
        """Choices [variables], `None` where there are none."""
        indices = [(row, column) for row, (columns, *_) in enumerate(self.rows) for column in columns]
        values = [value for _, coefficients, *_ in self.rows for value in coefficients]
        matrix = coo_array((values, tuple(zip(*indices, strict=True))), shape=(len(self.rows), self.columns))
        integral = np.zeros(self.columns)
        integral[: self.offsets[-1]] = 1
        lower, upper = np.array([row[2] for row in self.rows]), np.array([row[3] for row in self.rows])
        with _quiet():
            result = milp(
                self.objective,
                integrality=integral,
                bounds=Bounds(0, 1),
                constraints=LinearConstraint(matrix.tocsr(), lower, upper),
                options={"mip_rel_gap": GAP},
            )
        if result.x is None:
            return None
        choices = [int(np.argmax(result.x[self._x(k, 0) : self._x(k, size)])) for k, size in enumerate(self.sizes)]
        return np.array(choices, dtype=np.int64)

    def _x(self, variable: int, choice: int) -> int:
        return int(self.offsets[variable]) + choice

    def _linearize(self, pair: tuple[int, int], used: Floats) -> None:
        i, j = pair
        entries = [(int(a), int(b)) for a, b in zip(*np.nonzero(used), strict=True)]
        whole = len(entries) > 1
        if whole:
            entries = [(a, b) for a in range(self.sizes[i]) for b in range(self.sizes[j])]
        z = {entry: self.columns + n for n, entry in enumerate(entries)}
        self.columns += len(entries)
        self.products[pair] = z
        if not whole:
            for (a, b), column in z.items():
                x, y = self._x(i, a), self._x(j, b)
                self.rows.append(([column, x], [1.0, -1.0], -np.inf, 0.0))
                self.rows.append(([column, y], [1.0, -1.0], -np.inf, 0.0))
                self.rows.append(([column, x, y], [1.0, -1.0, -1.0], -1.0, np.inf))
            return
        for a in range(self.sizes[i]):
            columns = [z[a, b] for b in range(self.sizes[j])]
            self.rows.append(([*columns, self._x(i, a)], [*[1.0] * len(columns), -1.0], 0.0, 0.0))
        for b in range(self.sizes[j]):
            columns = [z[a, b] for a in range(self.sizes[i])]
            self.rows.append(([*columns, self._x(j, b)], [*[1.0] * len(columns), -1.0], 0.0, 0.0))

    def _coefficients(self, function: Pairwise) -> Floats:
        found = np.zeros(self.columns)
        for k, size in enumerate(self.sizes):
            found[self._x(k, 0) : self._x(k, 0) + size] = function.single[k, :size]
        for pair, values in function.pairs.items():
            for entry, column in self.products[pair].items():
                found[column] += values[entry]
        return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, nothing reaches standard output: HiGHS leaves debugging messages there whatever it is asked."""
    if os.name != "posix":
        yield
        return
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what the C library still holds goes nowhere too
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
