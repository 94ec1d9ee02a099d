"""The paper's genetic search, through pymoo: crossover and mutation of allocations, repaired to fit the budgets.

A child that breaks a budget is repaired: step by step, the change that loses least for what it saves. Then room that
is left is spent where it gains most. Li et al. 2021 (algorithm 2) draw new children instead until one fits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem as PymooProblem
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.optimize import minimize

from brecq.errors import BudgetError
from brecq.precision.exact import check_reachable
from brecq.precision.moves import fit
from brecq.precision.pairwise import Choices
from brecq.precision.problem import Problem

POPULATION, GENERATIONS = 50, 100
MUTATION = 0.1
"""Population, iterations and mutation probability as in the paper."""


def solve(problem: Problem, seed: int, population: int = POPULATION, generations: int = GENERATIONS) -> Choices:
    """The best allocation found, choices [knobs]. Deterministic for a seed.

    Raises:
        BudgetError: the limits cannot be met; the message states what can.
    """
    check_reachable(problem)
    algorithm = GA(
        pop_size=population,
        sampling=_Random(),
        crossover=UniformCrossover(),
        mutation=_Redraw(prob_var=MUTATION),
        repair=_Fit(problem),
        eliminate_duplicates=False,  # repaired children often meet: drawing until all differ takes most of the time
    )
    result = minimize(_Loss(problem), algorithm, ("n_gen", generations), seed=seed, verbose=False)
    if result.X is None:
        raise BudgetError("the genetic search found no allocation that fits; raise a budget, or use algorithm='exact'")
    best: Choices = np.asarray(result.X, dtype=np.int64)
    return best


class _Loss(PymooProblem):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        upper = np.array([len(knob.bits) - 1 for knob in problem.knobs])
        super().__init__(n_var=len(upper), n_obj=1, n_ieq_constr=len(problem.limits), xl=0, xu=upper, vtype=int)

    def _evaluate(self, x: Any, out: dict[str, Any], *_: Any, **__: Any) -> None:
        choices = np.asarray(x, dtype=np.int64)
        out["F"] = self.problem.loss(choices)[:, None]
        limits = self.problem.limits
        out["G"] = np.stack([self.problem.costs[cost](choices) / limit - 1 for cost, limit in limits.items()], axis=1)


class _Random(Sampling):
    def _do(self, problem: Any, n_samples: int, *_: Any, random_state: Generator, **__: Any) -> Choices:
        return random_state.integers(0, problem.xu + 1, size=(n_samples, problem.n_var))


class _Redraw(Mutation):
    def _do(self, problem: Any, x: Choices, *_: Any, random_state: Generator, **__: Any) -> Choices:
        drawn = random_state.integers(0, problem.xu + 1, size=x.shape)
        return np.where(random_state.random(x.shape) < self.get_prob_var(problem, size=(len(x), 1)), drawn, x)


class _Fit(Repair):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def _do(self, _: Any, x: Choices, **__: Any) -> Choices:
        return fit(self.problem, np.asarray(x, dtype=np.int64))
