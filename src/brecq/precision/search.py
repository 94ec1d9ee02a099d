"""`search`: from a sensitivity table and budgets to bits per layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from brecq.errors import BudgetError, ConfigError
from brecq.notice import warn
from brecq.precision import moves
from brecq.precision import problem as problems
from brecq.precision.allocation import BitAllocation
from brecq.precision.budget import Budget, Cost, parse_budgets
from brecq.precision.hardware import HardwareModel
from brecq.precision.options import FRONT_SIZE, Algorithm, Metric, SearchConfig
from brecq.precision.pairwise import Choices
from brecq.precision.problem import Problem
from brecq.precision.table import SensitivityTable
from brecq.settings import checked


def search(
    table: SensitivityTable,
    budgets: str | Budget | Iterable[str | Budget],
    *,
    hardware: HardwareModel | None = None,
    algorithm: Algorithm = "exact",
    metric: Metric = "fisher",
    cross: bool = True,
    seed: int = 0,
) -> BitAllocation:
    """The bits of every layer that lose least within the budgets.

    Args:
        table: from `brecq.measure_sensitivity`; it serves any budget.
        budgets: such as `"size=2.0MB"`, `"bops=10G"`, `"latency=3.5ms"`; all of several are kept.
        hardware: an `Accelerator` or a `LatencyTable`, for latency.
        algorithm: `exact` (integer program), `genetic` (the paper's), or `random`, a baseline that only fits.
        metric: of the predicted loss, see `brecq.precision.options.Metric`.
        cross: count the cross terms inside blocks. seed: of `genetic` and `random`.

    Raises:
        BudgetError: nothing fits; the message states what can be reached.
        ConfigError, HardwareError: a budget cannot be read or needs a hardware model, or the model lacks a layer.
    """
    parsed = parse_budgets([budgets] if isinstance(budgets, (str, Budget)) else budgets)
    SearchConfig(algorithm, metric, seed)  # validates
    losses = table.diagonal(metric).values()
    if losses and not any(losses):
        warn(
            f"every sensitivity is 0 by the metric {metric}: no width seems to cost anything, and the bits that are "
            "chosen mean nothing. A layer of zeros, such as a last layer that was not trained, passes no gradient: "
            + ("load trained weights, or take the metric relative" if metric != "relative" else "load trained weights")
        )
    problem = problems.build(table, parsed, hardware, metric, cross=cross)
    choices = solve(problem, algorithm, seed)
    return problems.allocation(problem, choices, table, algorithm, metric, hardware.name if hardware else "")


def pareto(
    table: SensitivityTable,
    cost: Cost,
    points: int,
    *,
    budgets: Iterable[str | Budget] = (),
    hardware: HardwareModel | None = None,
    algorithm: Algorithm = "exact",
    metric: Metric = "fisher",
    cross: bool = True,
    seed: int = 0,
) -> list[BitAllocation]:
    """The front of predicted loss against one cost, by a sweep of budgets; dominated points are left out.

    Args:
        cost: to sweep, from the least to the greatest that can be reached, in equal ratios.
        budgets: on other costs, kept at every point.
    """
    checked("points", points, int, FRONT_SIZE)
    kept = [budget for budget in map(_parsed, budgets) if budget.cost != cost]
    SearchConfig(algorithm, metric, seed)  # validates
    whole = problems.build(table, [*kept, Budget(cost, float("1e300"))], hardware, metric, cross=cross)
    ends = _solvers().exact.reachable(whole, cost, {budget.cost: budget.limit for budget in kept})
    if ends is None:
        raise ConfigError(f"the budgets {', '.join(map(str, kept))} cannot be met together; raise one of them")
    low, high = ends
    found: list[BitAllocation] = []
    for limit in np.geomspace(low, high, points) if high > low else [high]:
        # the ends are reached exactly: rounding of the sweep must not exclude them
        budget = Budget(cost, float(np.clip(limit, low, high)))
        point = search(
            table, [*kept, budget], hardware=hardware, algorithm=algorithm, metric=metric, cross=cross, seed=seed
        )
        if not found or (point.loss < found[-1].loss and point.costs[cost] > found[-1].costs[cost]):
            found.append(point)
    return found


def uniform(
    table: SensitivityTable, bits: int, *, hardware: HardwareModel | None = None, metric: Metric = "fisher"
) -> BitAllocation:
    """Every searched weight at `bits`, searched activations at their widest: what an allocation is compared with.

    Raises:
        ConfigError: not every weight chooses from `bits`.
    """
    SearchConfig(metric=metric)  # validates
    problem = problems.build(table, [], hardware, metric)
    choices = problems.uniform_choices(problem, bits)
    return problems.allocation(problem, choices, table, f"uniform {bits}", metric, hardware.name if hardware else "")


def check_budgets(
    table: SensitivityTable, budgets: Iterable[str | Budget], hardware: HardwareModel | None
) -> tuple[Budget, ...]:
    """The budgets, if allocations meet them; needs no sensitivities, so it can be asked before they are measured.

    Raises:
        BudgetError, ConfigError, HardwareError: as `search`.
    """
    parsed = parse_budgets(budgets)
    _solvers().exact.check_reachable(problems.build(table, parsed, hardware, "fisher"))
    return parsed


def solve(problem: Problem, algorithm: Algorithm, seed: int) -> Choices:
    """Choices [knobs] by the named algorithm."""
    solvers = _solvers()
    if algorithm == "exact":
        return solvers.exact.solve(problem)
    if algorithm == "genetic":
        return solvers.genetic.solve(problem, seed)
    solvers.exact.check_reachable(problem)
    choices = moves.random_choices(problem, np.random.default_rng(seed))
    if not problem.feasible(choices):
        raise BudgetError("no random allocation was found that fits; raise a budget, or use algorithm='exact'")
    return choices


class _Solvers(NamedTuple):
    exact: Any
    genetic: Any


def _solvers() -> _Solvers:
    """The modules that need libraries of their own."""
    try:
        from brecq.precision import exact, genetic
    except ImportError as error:
        raise ConfigError(f"the search needs {error.name}; install it with pip install 'brecq[search]'") from error
    return _Solvers(exact, genetic)


def _parsed(budget: str | Budget) -> Budget:
    return budget if isinstance(budget, Budget) else Budget.parse(budget)
