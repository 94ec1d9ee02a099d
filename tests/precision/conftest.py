"""Small networks with their sensitivities measured once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from brecq.config import QuantConfig, Recipe
from brecq.precision.layers import Knob
from brecq.precision.measure import measure_sensitivity
from brecq.precision.pairwise import Pairwise
from brecq.precision.problem import Problem
from brecq.precision.table import SensitivityTable

SAMPLES = 24
RECIPE = Recipe.preset("fast").replace(steps=4, batch_size=8, range_candidates=10, range_samples=16)


class Bench:
    """`bench.table("ResNet", ...)` measures a network of tests/networks.py; equal calls are measured once."""

    def __init__(self, networks: ModuleType) -> None:
        self.networks = networks
        self.recipe = RECIPE

        @cache
        def table(name: str, **options: Any) -> SensitivityTable:
            return self.measure(name, **options)

        self.table = table

    def model(self, name: str) -> nn.Module:
        return self.networks.build(getattr(self.networks, name))

    def inputs(self, name: str) -> Tensor:
        return self.networks.inputs(self.model(name), SAMPLES)[0]

    def config(self, **changes: Any) -> QuantConfig:
        return QuantConfig(recipe=RECIPE, **changes)

    def measure(self, name: str, *, config: QuantConfig | None = None, **options: Any) -> SensitivityTable:
        return measure_sensitivity(self.model(name), self.inputs(name), config or self.config(), **options)


@pytest.fixture(scope="session")
def bench(networks: ModuleType) -> Bench:
    return Bench(networks)


def random_problem(seed: int, sizes: list[int], limits: int = 1, spread: float = 0.3) -> Problem:
    """A problem with random values, `limits` budgets, and pairs in the loss and in the costs."""
    generator = np.random.default_rng(seed)
    knobs = tuple(Knob(f"{i}/weight", "weight", (str(i),), tuple(range(2, 2 + n))) for i, n in enumerate(sizes))

    def draw(falling: bool) -> Pairwise:
        found = Pairwise(sizes)
        for variable, size in enumerate(sizes):
            values = np.sort(generator.lognormal(0, 1, size))
            found.add(variable, values[::-1] if falling else np.round(100 * values))
        for i in range(len(sizes) - 1):
            if generator.random() < 0.6:
                found.add_pair(i, i + 1, spread * generator.normal(size=(sizes[i], sizes[i + 1])))
        return found

    names = ("size", "bops", "latency")[:limits]
    costs = {name: draw(False) for name in names}
    ends = {name: (cost.single.min(1).sum(), np.where(np.isinf(cost.single), 0, cost.single).max(1).sum())
            for name, cost in costs.items()}  # fmt: skip
    return Problem(knobs, draw(True), costs, {name: float(0.5 * (low + high)) for name, (low, high) in ends.items()})


@pytest.fixture(scope="session")
def make_problem() -> Callable[..., Problem]:
    return random_problem


@pytest.fixture(scope="session")
def tighten() -> Callable[[Problem, dict[str, float]], Problem]:
    """The same problem with other limits."""
    return lambda problem, limits: dataclasses.replace(problem, limits=limits)
