"""The search as a mathematical problem: minimize the predicted loss, costs within their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brecq.errors import BudgetError, ConfigError
from brecq.precision.allocation import BitAllocation, LayerBits
from brecq.precision.budget import Budget, Cost, describe
from brecq.precision.hardware import HardwareModel
from brecq.precision.hardware.counts import BitOperations, ModelSize
from brecq.precision.layers import Knob
from brecq.precision.options import Metric
from brecq.precision.pairwise import Choices, Pairwise
from brecq.precision.table import SensitivityTable


@dataclass(frozen=True)
class Problem:
    """Choose `knobs[k].bits[c_k]` for every knob.

    Attributes:
        loss: to minimize. costs: all that are known. limits: the budgets among them.
    """

    knobs: tuple[Knob, ...]
    loss: Pairwise
    costs: Mapping[Cost, Pairwise]
    limits: Mapping[Cost, float]

    def feasible(self, choices: Choices) -> bool:
        """Whether one allocation, choices [knobs], is within every limit."""
        return all(self.costs[cost](choices[None])[0] <= limit for cost, limit in self.limits.items())


def cost_models(table: SensitivityTable, hardware: HardwareModel | None) -> dict[Cost, HardwareModel]:
    """The models that apply to a network: size and bit-operations always, latency with `hardware`."""
    models: dict[Cost, HardwareModel] = {"size": ModelSize(table.other_bytes), "bops": BitOperations()}
    if hardware is not None:
        models[hardware.kind] = hardware
    return models


def build(
    table: SensitivityTable,
    budgets: Sequence[Budget],
    hardware: HardwareModel | None,
    metric: Metric,
    *,
    cross: bool = True,
) -> Problem:
    """The problem of a network, its budgets and its hardware.

    Raises:
        ConfigError: a latency budget without `hardware`. HardwareError: the model does not cover a layer.
    """
    models = cost_models(table, hardware)
    for budget in budgets:
        if budget.cost not in models:
            raise ConfigError(
                f"the budget {budget} needs a hardware model; give --hardware (an accelerator or a latency table)"
            )
    limits = {budget.cost: budget.limit for budget in budgets}
    costs = {cost: _costs(table, model) for cost, model in models.items()}
    return Problem(table.knobs, _loss(table, metric, cross), costs, limits)


def _loss(table: SensitivityTable, metric: Metric, cross: bool) -> Pairwise:
    loss = _pairwise(table.knobs)
    index = {knob.name: k for k, knob in enumerate(table.knobs)}
    position = {(knob.name, bits): c for knob in table.knobs for c, bits in enumerate(knob.bits)}
    for (name, bits), value in table.diagonal(metric).items():
        values = np.zeros(loss.sizes[index[name]])
        values[position[name, bits]] = value
        loss.add(index[name], values)
    if not cross:
        return loss
    pairs: dict[tuple[int, int], np.ndarray] = {}
    for first, second, value in table.crosses(metric):
        i, j = index[first[0]], index[second[0]]
        values = pairs.setdefault((i, j), np.zeros((loss.sizes[i], loss.sizes[j])))
        values[position[first], position[second]] += value
    for (i, j), values in pairs.items():
        loss.add_pair(i, j, values)
    return loss


def _costs(table: SensitivityTable, model: HardwareModel) -> Pairwise:
    cost = _pairwise(table.knobs)
    cost.constant = model.overhead
    index = {knob.name: k for k, knob in enumerate(table.knobs)}
    for layer in table.layers:
        i, j = index[layer.weight], index[layer.input]
        values = np.array(
            [[model.cost(layer, w, a) for a in table.knobs[j].bits] for w in table.knobs[i].bits], dtype=np.float64
        )
        cost.add_pair(i, j, values)
    return cost


def _pairwise(knobs: Sequence[Knob]) -> Pairwise:
    return Pairwise([len(knob.bits) for knob in knobs])


def allocation(
    problem: Problem, choices: Choices, table: SensitivityTable, algorithm: str, metric: Metric, hardware: str
) -> BitAllocation:
    """Choices [knobs] as bits per layer."""
    bits = {knob.name: knob.bits[choice] for knob, choice in zip(problem.knobs, choices.tolist(), strict=True)}
    return BitAllocation(
        layers={layer.name: LayerBits(bits[layer.weight], bits[layer.input]) for layer in table.layers},
        config=table.config,
        loss=float(problem.loss(choices[None])[0]),
        costs={cost: float(function(choices[None])[0]) for cost, function in problem.costs.items()},
        budgets=dict(problem.limits),
        algorithm=algorithm,
        metric=metric,
        hardware=hardware,
    )


def uniform_choices(problem: Problem, bits: int) -> Choices:
    """Every free weight at `bits` (which it must offer); other knobs at their widest."""
    found = []
    for knob in problem.knobs:
        if knob.free and knob.kind == "weight" and bits not in knob.bits:
            raise ConfigError(f"{knob.name} does not choose from {bits} bits, but from {list(knob.bits)}")
        chosen = bits if knob.free and knob.kind == "weight" else knob.bits[-1]
        found.append(knob.bits.index(chosen))
    return np.array(found, dtype=np.int64)


def infeasible(cost: Cost, limit: float, low: float, high: float, others: Sequence[str]) -> BudgetError:
    """The error for a budget out of reach, with the range that can be reached."""
    beside = f" beside {' and '.join(others)}" if others else ""
    return BudgetError(
        f"no allocation has {cost} ≤ {describe(cost, limit)}{beside}; reachable are {describe(cost, low)} to "
        f"{describe(cost, high)}: raise the budget, or allow fewer bits (--bits)"
    )
