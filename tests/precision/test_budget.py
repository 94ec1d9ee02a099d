"""Budgets from text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brecq.errors import ConfigError
from brecq.precision.budget import COSTS, Budget, describe, parse_budgets


@pytest.mark.parametrize(
    ("text", "cost", "limit"),
    [
        ("size=2.0MB", "size", 2e6), ("size=2MiB", "size", 2 * 2**20), ("size=512 KB", "size", 512e3),
        ("size=77", "size", None), ("size=77B", "size", 77), ("SIZE=1gb", "size", 1e9), ("bops=10G", "bops", 1e10),
        ("bops=10GBOPs", "bops", 1e10), ("bops=5e9", "bops", 5e9), ("latency=3.5ms", "latency", 3.5),
        ("latency=200us", "latency", 0.2), ("latency=0.01s", "latency", 10.0), ("latency=.5µs", "latency", 0.0005),
    ],
)  # fmt: skip
def test_text(text: str, cost: str, limit: float | None) -> None:
    if limit is None:
        with pytest.raises(ConfigError, match=r"'size=77'; give a number and a unit: B, KB"):
            Budget.parse(text)
        return
    found = Budget.parse(text)
    assert found.cost == cost
    assert found.limit == pytest.approx(limit)


@pytest.mark.parametrize(
    "text", ["size", "size=", "size=MB", "size=-1MB", "size=0MB", "size=2ms", "latency=3", "latency=3MB", "watts=3W",
             "bops=3X", "size=1e999GB", "size=nanMB"],
)  # fmt: skip
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="budget"):
        Budget.parse(text)


@given(st.sampled_from(COSTS), st.floats(1e-3, 1e13))
def test_what_is_shown_can_be_read(cost: str, limit: float) -> None:
    assert Budget.parse(f"{cost}={describe(cost, limit)}").limit == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("limit", [None, True, "3", [1], -1, 0, math.nan, math.inf, 10**400])
def test_limits_are_positive_numbers(limit: object) -> None:
    with pytest.raises(ConfigError, match=r"the budget on size is .*; give a positive number"):
        Budget("size", limit)  # type: ignore[arg-type]


def test_one_budget_a_cost_and_at_least_one() -> None:
    assert [budget.cost for budget in parse_budgets(["size=1MB", Budget("latency", 3.0)])] == ["size", "latency"]
    for budgets in ([], ["size=1MB", "size=2MB"]):
        with pytest.raises(ConfigError, match="budget"):
            parse_budgets(budgets)
