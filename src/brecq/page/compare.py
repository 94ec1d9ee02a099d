"""Several results side by side on one HTML page: a table, size against each metric, bits and errors per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from brecq.page import charts, words
from brecq.page.facts import Facts, gather
from brecq.page.record import Record
from brecq.page.render import render
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
    networks = _networks(found)
    floats = [row for network in networks for row in _float_rows(network, several=len(networks) > 1)]
    drawn = []
    for name in metrics:
        points = [_points(network, name) for network in networks]
        if sum(map(len, points)) > 1 and (name == metrics[0] or name.startswith(PLOTTED)):
            before = floats[0].metrics.get(name) if len(floats) == 1 else None
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
        networks=[(network[0].model, [each.name for each in network], _layers(network)) for network in networks],
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
    model, bits = words.network(result), words.bits(facts)
    return _Result(name, model, bits, last, floating, facts.weight_bytes, result.report.seconds, facts)


def _networks(results: Sequence[_Result]) -> list[list[_Result]]:
    """The results by what was quantized: of one network they have its name and its layers with their parameters."""
    groups: dict[Any, list[_Result]] = {}
    for each in results:
        layers = frozenset((layer.name, layer.kind, layer.parameters) for layer in each.facts.layers)
        groups.setdefault((each.model, layers), []).append(each)
    return list(groups.values())


def _points(results: Sequence[_Result], metric: str) -> list[charts.Point]:
    return [
        (each.size, each.metrics[metric], each.name)
        for each in results
        if math.isfinite(each.metrics.get(metric, math.nan))
    ]


def _float_rows(network: Sequence[_Result], several: bool) -> list[_Result]:
    """The float network as it was measured, each time once; where there are `several` networks, under the names of its
    results."""
    rows: list[_Result] = []
    for each in network:
        if each.floating and each.floating not in [row.metrics for row in rows]:
            whose = f" of {', '.join(other.name for other in network)}" if several else ""
            floating = replace(each, name=f"float{whose}", bits="", metrics=each.floating, size=each.facts.float_bytes)
            rows.append(floating)
    return rows


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
            alone = " (part alone)" if layer.alone else ""
            cells.append(f"{bits}, {layer.shown_sqnr}{alone}" if layer.noise else bits)
        rows.append((name, cells))
    return rows
