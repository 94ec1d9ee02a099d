"""Several results side by side on one HTML page: a table, size against each metric, bits and errors per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from brecq.page import charts
from brecq.page.facts import Facts, gather
from brecq.page.record import Record
from brecq.page.render import render, title
from brecq.result import QuantResult

FEWER = ("RMSE", "MAE", "perplexity", "nats a token", "flips")
"""What the names of metrics begin with of which less is better."""

PLOTTED = ("agreement", "flips")
"""What is plotted beside the first metric, that of the task."""


@dataclass(frozen=True)
class _Result:
    name: str
    model: str
    bits: str
    metrics: dict[str, float]
    floating: dict[str, float]
    size: int
    seconds: float
    facts: Facts


def compare_page(results: Sequence[tuple[str, QuantResult, Record]]) -> str:
    """The results, each with its name and what was measured, as one page."""
    found = [_result(*each) for each in results]
    metrics = list(dict.fromkeys(name for each in found for name in each.metrics))
    floats = _float_rows(found)
    drawn = []
    for name in metrics:
        points = [(each.size, each.metrics[name], each.name) for each in found if name in each.metrics]
        if len(points) > 1 and (name == metrics[0] or name.startswith(PLOTTED)):
            before = floats[0][1].get(name) if len(floats) == 1 else None
            chart = charts.size_against(name, points, before, fewer=name.startswith(FEWER))
            drawn.append((name, Markup(chart)))
    digests = {result.report.data_digest for _, result, _ in results}
    return render(
        "compare.html.j2",
        title="Results compared",
        results=found,
        floats=floats,
        metrics=metrics,
        charts=drawn,
        different_data=len(digests) > 1,
        layers=_layers(found),
    )


def shortest_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as are needed to tell them apart."""
    whole = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _result(name: str, result: QuantResult, record: Record) -> _Result:
    facts = gather(result)
    last = record.rows[-1].metrics if record.rows else {}
    floating = next((row.metrics for row in record.rows if row.name == "float"), {})
    model, bits = title(result)
    return _Result(name, model, bits, last, floating, facts.weight_bytes, result.report.seconds, facts)


def _float_rows(results: Sequence[_Result]) -> list[tuple[str, dict[str, float], int]]:
    """The float networks as they were measured, each once: model, metrics, bytes."""
    rows = [(each.model, each.floating, each.facts.float_bytes) for each in results if each.floating]
    return [row for number, row in enumerate(rows) if row not in rows[:number]]


def _layers(results: Sequence[_Result]) -> list[tuple[str, list[str]]]:
    names = list(dict.fromkeys(layer.name for each in results for layer in each.facts.layers))
    columns = [{layer.name: layer for layer in each.facts.layers} for each in results]
    rows = []
    for name in names:
        cells = []
        for column in columns:
            layer = column.get(name)
            if layer is None:
                cells.append("")
                continue
            bits = "float" if layer.bits > 8 else f"{layer.bits} bit"
            cells.append(bits if layer.sqnr is None else f"{bits}, {layer.sqnr:.1f}")
        rows.append((name, cells))
    return rows
