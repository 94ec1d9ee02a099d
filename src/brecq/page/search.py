"""The page of a search: what each layer loses at each width, the front, and the bits of each of its points."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from brecq.page import charts
from brecq.page.record import Origin
from brecq.page.render import bits_level, embedded, ranked, render
from brecq.precision.allocation import BitAllocation
from brecq.precision.budget import Cost, readable
from brecq.precision.options import Metric
from brecq.precision.table import SensitivityTable

SEARCH_PAGE = "search.html"

COSTS: dict[Cost, str] = {"size": "weights", "bops": "bit-operations", "latency": "latency"}

LOSSES: dict[Metric, str] = {
    "fisher": "Fisher information", "fisher_diagonal": "the diagonal of the Fisher information",
    "relative": "the relative error of each block's output",
}  # fmt: skip
"""What losses are predicted from."""

ALGORITHMS = {
    "exact": "an integer program", "genetic": "a genetic search", "random": "random choice",
}  # fmt: skip

NOWHERE = Origin()

Cell = tuple[float | None, int | str]
"""A loss, and the level of its color."""


def search_page(
    table: SensitivityTable,
    chosen: BitAllocation,
    uniform: Sequence[tuple[str, BitAllocation]],
    front: Sequence[BitAllocation],
    cost: Cost,
    metric: Metric,
    origin: Origin = NOWHERE,
) -> str:
    """The page as HTML.

    Args:
        chosen: within the budgets. uniform: the same width everywhere, each with its name. front: of `cost`, may be
            empty. metric: that losses are predicted by.
    """
    points = [("chosen", chosen), *((f"point {number}", point) for number, point in enumerate(front, 1)), *uniform]
    shown = [
        (name, point, {each: readable(each, value) for each, value in point.costs.items()}) for name, point in points
    ]
    widths, rows = _heat(table, metric)
    return render(
        "search.html.j2",
        title=origin.title("Bits per layer"),
        command=origin.command,
        chosen=chosen,
        budgets=[f"{COSTS[name]} ≤ {readable(name, value)}" for name, value in chosen.budgets.items()],
        loss=LOSSES[metric],
        found=ALGORITHMS[chosen.algorithm],
        costs={name: COSTS[name] for name in chosen.costs},
        points=shown,
        chart=Markup(charts.loss_against(cost, [(p.costs[cost], p.loss, name) for name, p in points])),
        layers=list(chosen.layers),
        widths=widths,
        rows=rows,
        table=table,
        points_json=Markup(embedded([_bits(point) for _, point in points])),
    )


def _bits(point: BitAllocation) -> list[list[int]]:
    """Per layer: bits of its weight, of its input, and the color level."""
    return [[bits.weights, bits.activations, bits_level(bits.weights)] for bits in point.layers.values()]


def _heat(table: SensitivityTable, metric: Metric) -> tuple[list[int], list[tuple[str, list[Cell]]]]:
    """The widths, and per free knob its loss at each with a color level; `None` where a knob has not that width."""
    losses = table.diagonal(metric)
    knobs = [knob for knob in table.knobs if knob.free]
    widths = sorted({bits for knob in knobs for bits in knob.bits})
    values = [losses.get((knob.name, bits)) for knob in knobs for bits in widths]
    cells = list(zip(values, ranked(values), strict=True))
    return widths, [(knob.name, cells[row * len(widths) : (row + 1) * len(widths)]) for row, knob in enumerate(knobs)]
