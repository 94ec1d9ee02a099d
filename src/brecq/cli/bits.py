"""How the commands show bits per layer and the front."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brecq.cli.inputs import tell
from brecq.cli.render import make_table
from brecq.config import FLOAT
from brecq.errors import ConfigError
from brecq.precision.budget import Cost, readable
from brecq.units import significant

if TYPE_CHECKING:
    from brecq.precision.allocation import BitAllocation

BITS_CHART = ("bits.png", "bits.svg")


def bits_table(allocation: BitAllocation) -> Table:
    """Layers with the bits of their weights and inputs."""
    table = make_table("Bits per layer", ["layer", "weights", "inputs", ""], numeric=("weights", "inputs"))
    for name, bits in allocation.layers.items():
        bar = Text("█" * min(bits.weights, 8), style="cyan")
        table.add_row(name, _bits(bits.weights), _bits(bits.activations), bar)
    return table


def costs_table(title: str, points: Mapping[str, BitAllocation], first: Cost) -> Table:
    """What allocations cost and are predicted to lose, a line each, the cost `first` first."""
    known = next(iter(points.values())).costs
    costs: list[Cost] = [first, *(cost for cost in known if cost != first)]
    columns = ["", *costs, "predicted loss"]
    table = make_table(title, columns, numeric=columns[1:])
    for name, point in points.items():
        shown = [readable(cost, point.costs[cost]) for cost in costs]
        table.add_row(name, *shown, significant(point.loss))
    return table


def tell_allocation(console: Console, allocation: BitAllocation) -> None:
    """Bits per layer, what they cost, and what they are predicted to lose."""
    console.print(bits_table(allocation))
    for cost, value in allocation.costs.items():
        limit = allocation.budgets.get(cost)
        within = "" if limit is None else f" of {readable(cost, limit)}"
        model = f" on {allocation.hardware}" if cost == "latency" else ""
        tell(console, cost, f"{readable(cost, value)}{within}{model}")
    tell(console, "loss", f"{significant(allocation.loss)} predicted ({allocation.metric}, {allocation.algorithm})")


def draw_bits(console: Console, allocation: BitAllocation, folder: Path) -> None:
    """Write the bits as charts into `folder`; without matplotlib say so."""
    from brecq.precision.charts import plot_bits

    try:
        plot_bits(allocation, [folder / name for name in BITS_CHART])
    except ConfigError as error:
        tell(console, "no chart", str(error))


def _bits(width: int) -> str:
    return "float" if width == FLOAT else str(width)
