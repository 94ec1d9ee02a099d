"""The genetic search against the exact one; random allocations."""

from __future__ import annotations

import numpy as np
import pytest

from brecq.errors import BudgetError
from brecq.precision import exact, genetic, moves


@pytest.mark.parametrize(("seed", "limits"), [(0, 1), (1, 2), (2, 3)])
def test_within_one_percent_of_the_optimum(make_problem, seed: int, limits: int) -> None:
    problem = make_problem(seed, [4] * 20, limits)
    best = problem.loss(exact.solve(problem)[None])[0]
    found = genetic.solve(problem, seed, generations=40)
    assert problem.feasible(found)
    assert problem.loss(found[None])[0] <= best + 0.01 * abs(best)


def test_a_seed_decides_the_search(make_problem) -> None:
    problem = make_problem(5, [4] * 30)
    first, again = (genetic.solve(problem, 3, population=10, generations=2) for _ in range(2))
    assert np.array_equal(first, again)


def test_infeasible_budgets_are_the_same_error(make_problem, tighten) -> None:
    with pytest.raises(BudgetError, match="reachable are"):
        genetic.solve(tighten(make_problem(1, [3, 3, 3]), {"size": 1.0}), 0)


def test_fitting_moves_into_the_budget_and_never_out(make_problem) -> None:
    problem = make_problem(2, [4] * 15, 2)
    start = np.stack([np.random.default_rng(seed).integers(0, 4, 15) for seed in range(20)])
    fitted = moves.fit(problem, start)
    assert all(problem.feasible(choice) for choice in fitted)
    again = moves.fit(problem, fitted)
    assert np.all(problem.loss(again) <= problem.loss(fitted) + 1e-12)


def test_random_allocations_fit_fill_and_differ(make_problem) -> None:
    problem = make_problem(4, [4] * 15, spread=0.0)
    drawn = [moves.random_choices(problem, np.random.default_rng(seed)) for seed in range(10)]
    assert len({choice.tobytes() for choice in drawn}) > 5
    for choice in drawn:
        assert problem.feasible(choice)
        for knob in np.flatnonzero(choice < 3):
            wider = choice.copy()
            wider[knob] += 1
            assert not problem.feasible(wider)
