"""The integer program against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brecq.errors import BudgetError
from brecq.precision import exact
from brecq.precision.problem import Problem


def everything(problem: Problem) -> np.ndarray:
    return np.array(list(itertools.product(*[range(len(knob.bits)) for knob in problem.knobs])))


def optimum(problem: Problem) -> float:
    choices = everything(problem)
    fits = np.all([problem.costs[cost](choices) <= limit for cost, limit in problem.limits.items()], axis=0)
    return float(problem.loss(choices)[fits].min(initial=np.inf))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(1, 3))
def test_nothing_that_fits_is_better(make_problem, seed: int, sizes: list[int], limits: int) -> None:
    problem = make_problem(seed, sizes, limits)
    best = optimum(problem)
    if best == np.inf:
        with pytest.raises(BudgetError):
            exact.solve(problem)
        return
    found = exact.solve(problem)
    assert problem.feasible(found)
    assert problem.loss(found[None])[0] <= best + 1e-5 * max(1.0, abs(best))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_the_reachable_range(make_problem, seed: int, sizes: list[int]) -> None:
    problem = make_problem(seed, sizes)
    values = problem.costs["size"](everything(problem))
    assert exact.reachable(problem, "size") == pytest.approx((values.min(), values.max()))


def test_a_budget_holds_to_the_last_byte(make_problem, tighten) -> None:
    problem = make_problem(3, [4] * 6, spread=0.0)
    for value in np.unique(problem.costs["size"](everything(problem)))[10:200:30]:
        reached = tighten(problem, {"size": float(value)})
        assert problem.loss(exact.solve(reached)[None])[0] == pytest.approx(optimum(reached), rel=1e-5)
        missed = tighten(problem, {"size": float(value) - 1})
        found = exact.solve(missed)
        assert missed.feasible(found)


def test_infeasible_budgets_name_what_can_be_reached(make_problem, tighten) -> None:
    problem = make_problem(1, [3, 3, 3], 2, spread=0.0)
    low, high = exact.reachable(problem, "size")
    with pytest.raises(BudgetError, match=r"size ≤ 1B; reachable are .*B to .*B: raise the budget"):
        exact.solve(tighten(problem, {"size": 1.0}))
    # each alone is possible, both are not: the range of the second is what the first leaves
    opposed = problem.costs["bops"]
    opposed.single[:, :3] = opposed.single[:, 2::-1]
    cheapest, dearest = exact.reachable(problem, "bops")
    assert low < high
    assert cheapest < dearest
    with pytest.raises(BudgetError, match=r"bops ≤ .* beside size; reachable are"):
        exact.solve(tighten(problem, {"size": low, "bops": cheapest}))


def test_the_solver_prints_nothing(make_problem, capfd: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        exact.solve(make_problem(seed, [4] * 30))
    assert capfd.readouterr() == ("", "")
