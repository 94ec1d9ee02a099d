"""Budgets: `size=2.0MB`, `bops=10G`, `latency=3.5ms`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from brecq.errors import ConfigError
from brecq.text import shown
from brecq.units import format_bytes

Cost = Literal["size", "bops", "latency"]
COSTS: tuple[Cost, ...] = get_args(Cost)

_DECIMAL = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
UNITS: dict[Cost, dict[str, float]] = {
    "size": {f"{p}B": f for p, f in _DECIMAL.items()} | {f"{p}iB": 1024.0**i for i, p in enumerate("KMG", 1)},
    "bops": _DECIMAL,
    "latency": {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "ns": 1e-6},
}
"""Factor of each unit to bytes, bit-operations, milliseconds. KB, MB, GB are decimal, KiB, MiB, GiB binary."""

_SHOWN: dict[Cost, tuple[str, ...]] = {
    "size": ("GB", "MB", "KB", "B"), "bops": ("T", "G", "M", "K", ""), "latency": ("s", "ms", "us", "ns"),
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """An upper limit: bytes (`size`), bit-operations (`bops`) or milliseconds (`latency`) per sample."""

    cost: Cost
    limit: float

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise ConfigError(f"there is no budget on {self.cost!r}; choose one of {', '.join(COSTS)}")
        number = isinstance(self.limit, (int, float)) and not isinstance(self.limit, bool)
        if not number or not 0 < self.limit <= sys.float_info.max:
            raise ConfigError(f"the budget on {self.cost} is {shown(self.limit)}; give a positive number")

    def __str__(self) -> str:
        return f"{self.cost}={describe(self.cost, self.limit)}"

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From text such as `size=2.0MB`, `size=512KiB`, `bops=10G`, `latency=3.5ms`.

        Raises:
            ConfigError: the cost or the unit is unknown; the message lists what there is.
        """
        if not isinstance(text, str):
            raise ConfigError(f"the budget is {shown(text)}; write size=2.0MB, bops=10G or latency=3.5ms")
        name, _, amount = text.partition("=")
        cost = next((known for known in COSTS if known == name.strip().lower()), None)
        if cost is None:
            raise ConfigError(f"the budget is {shown(text)}; write size=2.0MB, bops=10G or latency=3.5ms")
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*([a-zA-Zµ]*)\s*", amount)
        units = {unit.lower(): factor for unit, factor in UNITS[cost].items()}
        unit = match[2].lower().removesuffix("bops" if cost == "bops" else "\0") if match else ""
        if match is None or unit not in units:
            known = ", ".join(unit or "none" for unit in UNITS[cost])
            raise ConfigError(f"the budget is {shown(text)}; give a number and a unit: {known}")
        return cls(cost, float(match[1]) * units[unit])


def parse_budgets(budgets: Iterable[str | Budget]) -> tuple[Budget, ...]:
    """Budgets from their text, at most one per cost.

    Raises:
        ConfigError: none is given, one cannot be read, or one cost has two.
    """
    if not isinstance(budgets, Iterable):
        raise ConfigError(f"the budgets are {shown(budgets)}; give texts such as size=2.0MB")
    found = tuple(budget if isinstance(budget, Budget) else Budget.parse(budget) for budget in budgets)
    if not found:
        raise ConfigError("no budget is given; give at least one, such as size=2.0MB")
    for cost in COSTS:
        if sum(budget.cost == cost for budget in found) > 1:
            raise ConfigError(f"{cost} has more than one budget; keep the tightest")
    return found


def describe(cost: Cost, value: float) -> str:
    """`1.96MB`, `9.87G`, `3.41ms`: four digits in the unit that suits; `Budget.parse` reads it."""
    unit = _unit(cost, value)
    return f"{value / UNITS[cost][unit]:.4g}{unit}"


def readable(cost: Cost, value: float) -> str:
    """`1.96 MB`, `9.87 G`, `3.41 ms`: the same for people."""
    if cost == "size":
        return format_bytes(value)
    unit = _unit(cost, value)
    return f"{value / UNITS[cost][unit]:#.4g} {unit}".rstrip()


def _unit(cost: Cost, value: float) -> str:
    units = _SHOWN[cost]
    return next((unit for unit in units if abs(value) >= UNITS[cost][unit]), units[-1])
