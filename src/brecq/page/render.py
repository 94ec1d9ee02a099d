"""The page itself: facts and charts put into the template. It loads nothing from the network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brecq.errors import CheckpointError
from brecq.page import charts, words
from brecq.page.boxes import compare
from brecq.page.facts import Facts, Layer, gather, within
from brecq.page.pictures import SHOWN
from brecq.page.record import Record
from brecq.placement.noise import SAMPLES
from brecq.result import QuantResult
from brecq.storage.files import refuse_strangers
from brecq.storage.files import write as write_file
from brecq.units import format_bytes, format_seconds, measure, significant

PAGE = "report.html"
WORST = 6
LEVELS = 5

_SECTIONS = {
    "outcome": "Outcome", "network": "Network", "blocks": "Blocks", "tensors": "Along the network", "sizes": "Size",
    "worst": "Worst layers", "float": "In float", "pictures": "Pictures", "settings": "Settings",
}  # fmt: skip


def write_page(result: QuantResult, file: Path | str, record: Record | None = None) -> Path:
    """Write the report of `result` to `file`: one HTML page without anything outside of it.

    Raises:
        CheckpointError: the file cannot be written.
    """
    return write_text(Path(file), page(result, record or Record()))


def write_text(file: Path, text: str) -> Path:
    """Write a page, in place of an earlier page of brecq's only.

    Raises:
        CheckpointError: the file cannot be written, or what is there is not brecq's.
    """
    refuse_strangers(file.parent, [file.name], CheckpointError)
    write_file(file, text.encode(), CheckpointError)
    return file


def page(result: QuantResult, record: Record) -> str:
    """The report of `result` as HTML."""
    facts = gather(result)
    learned = result.config.method != "rtn"
    in_file = {layer: value for each in record.exported for layer, value in each.layers.items()}
    drawn = {
        "blocks": Markup(charts.block_errors(facts.blocks, learned)) if facts.blocks else "",
        "sqnr": Markup(charts.sqnr_along(facts.layers, in_file))
        if any(x.sqnr is not None for x in facts.layers)
        else "",
        "bytes": Markup(charts.bytes_per_layer(facts.layers)),
    }
    worst = sorted((layer for layer in facts.layers if layer.sqnr is not None), key=lambda layer: layer.sqnr or 0.0)
    present = {
        "blocks": bool(drawn["blocks"]), "tensors": bool(drawn["sqnr"]), "worst": bool(worst),
        "pictures": bool(record.calibration or record.changed or record.detected),
    }  # fmt: skip
    return render(
        "report.html.j2",
        title=words.title(facts),
        summary=words.summary(facts),
        sections=[(key, name) for key, name in _SECTIONS.items() if present.get(key, True)],
        facts=facts,
        report=result.report,
        learned=learned,
        sized=any(row.size for row in record.rows),
        timed=any(row.seconds is not None for row in record.rows),
        record=record,
        detected=[(each, compare(each)) for each in record.detected],
        metrics=list(dict.fromkeys(name for row in record.rows for name in row.metrics)),
        quantized=sum(layer.bits <= 8 for layer in facts.layers),
        output=_output(facts),
        alone=result.report.alone(list(result.parts)),
        parts=list(result.parts),
        groups=[(name, list(members)) for name, members in groupby(enumerate(facts.layers), lambda x: x[1].block)],
        levels=_levels(facts.layers),
        charts=drawn,
        most_changed=SHOWN,
        noise_samples=min(SAMPLES, result.report.samples),
        worst=[(layer, Markup(charts.histograms(layer))) for layer in worst[:WORST]],
        layers_json=Markup(embedded([_numbers(layer, in_file.get(layer.name)) for layer in facts.layers])),
    )


def render(template: str, *, plain: bool = False, **values: Any) -> str:
    """A template of this package: a page with its style and script, or with `plain` text that is not HTML."""
    loader = PackageLoader("brecq.page")
    environment = Environment(loader=loader, autoescape=not plain, undefined=StrictUndefined, trim_blocks=True)
    environment.filters.update(
        number=_number,
        measure=_measure,
        bytes=format_bytes,
        seconds=format_seconds,
        significant=significant,
        tail=_tail,
    )
    scripts = {name: Markup(loader.get_source(environment, f"{name}.js")[0]) for name in ("report", "search")}
    style = Markup(loader.get_source(environment, "style.css")[0])
    return environment.get_template(template).render(style=style, scripts=scripts, **values)


def _output(facts: Facts) -> tuple[str, str, str] | None:
    """What is said of the outputs on calibration samples: whose SQNR, its value, of which output; `None` without any.

    Of several outputs the worst one counts. A result of older brecqs knows of its layers only.
    """
    report = facts.result.report
    outputs = [each for each in report.outputs if each.signal or each.noise]
    if outputs:
        worst = min(outputs, key=lambda each: -math.inf if math.isnan(each.sqnr) else each.sqnr)
        several = "the parts' outputs" if facts.result.parts else f"{len(outputs)} outputs"
        what = "SQNR of the output" if len(outputs) == 1 else f"lowest SQNR of {several}"
        alone = within(worst.name, report.alone(list(facts.result.parts)))
        return what, measure("SQNR dB", worst.sqnr), worst.name + (" alone" if alone else "")
    known = [layer for layer in facts.layers if layer.noise is not None]
    return ("SQNR of the last layer", known[-1].shown_sqnr, known[-1].name) if known else None


def _levels(layers: Sequence[Layer]) -> dict[str, list[int | str]]:
    """The color of each layer, 0 to 4, under each of the three orders; empty where nothing is known."""
    errors = [None if layer.sqnr is None else -layer.sqnr for layer in layers]
    sizes = [float(layer.bytes) or None for layer in layers]
    return {"sqnr": ranked(errors), "bits": [bits_level(layer.bits) for layer in layers], "bytes": ranked(sizes)}


def bits_level(bits: int) -> int:
    """The color of a width: 0 for 2 bits, to the last for float."""
    return next((level for level, most in enumerate((2, 3, 4, 8)) if bits <= most), LEVELS - 1)


def ranked(values: Sequence[float | None]) -> list[int | str]:
    """A fifth of the known values in each level: one outlier does not take the color from all others."""
    order = sorted({value for value in values if value is not None})
    return ["" if value is None else LEVELS * order.index(value) // len(order) for value in values]


def _numbers(layer: Layer, in_file: float | None) -> dict[str, Any]:
    """What a click on a layer shows. `in_file`: SQNR of its output in an exported file, in dB."""
    rows = [
        ("kind", layer.kind), ("block", layer.block), ("weights", layer.weights), ("inputs", layer.inputs),
        ("output, behind the activation function", layer.output), ("parameters", f"{layer.parameters:,}"),
        ("stored", format_bytes(layer.bytes)),
    ]  # fmt: skip
    if layer.noise is not None:
        alone = ", of its part alone" if layer.alone else ""
        rows.append((f"SQNR of the output{alone}", f"{layer.shown_sqnr} dB"))
        if in_file is not None:
            rows.append(("the same in the exported file", f"{in_file:.1f} dB"))
        rows.append(("float output", f"{layer.noise.low:.4g} to {layer.noise.high:.4g}"))
        if layer.noise.grid is not None:
            rows.append(("grid of the output", "{:.4g} to {:.4g}".format(*layer.noise.grid)))
    if layer.reason:
        rows.append(("why", layer.reason))
    return {"name": layer.name, "numbers": rows, "codes": layer.codes, "low": layer.code_low}


def embedded(values: Any) -> str:
    """JSON that can stand inside a script element."""
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞"


def _measure(row: Mapping[str, float], name: str) -> str:
    return measure(name, row.get(name))


def _tail(name: str, block: str) -> str:
    """A layer's name without its block's."""
    return name.removeprefix(f"{block}.") or name
