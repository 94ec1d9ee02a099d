"""Tables that read well at 80 columns and in a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from brecq.cli.fitting import FittingTable
from brecq.units import format_bytes, format_seconds, measure, short_count, significant

if TYPE_CHECKING:
    from brecq import Benchmark, Evaluation, Verification
    from brecq.deploy.against import Distance
    from brecq.deploy.compare import CodesCompared
    from brecq.deploy.runtime import Kernels
    from brecq.report import ScopeEntry, TensorLoss
    from brecq.steps.inspection import BlockSummary
    from brecq.synthesis.match import LayerMatch


@dataclass(frozen=True)
class ResultRow:
    """One line of the final table. `evaluation` is `None` where nothing was evaluated, `size` is in bytes."""

    name: str
    evaluation: Evaluation | None
    size: int | None
    seconds: float | None


PIPE_WIDTH = 10_000
"""Columns where nobody looks: in a file or pipe a line of a table stays one line."""


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Where commands print: as wide as the terminal, without any wrapping elsewhere."""
    console = Console(stderr=stderr, quiet=quiet)
    if console.is_terminal:
        return console
    return Console(file=_Pipe(stderr), stderr=stderr, quiet=quiet, width=PIPE_WIDTH)  # type: ignore[arg-type]


class _Pipe:
    """Standard output or error without the blanks that tables and titles end lines with."""

    def __init__(self, stderr: bool) -> None:
        self.stderr = stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr if self.stderr else sys.stdout, name)

    def write(self, text: str) -> int:
        """`text` comes in whole lines."""
        self.__getattr__("write")(re.sub(r" +$", "", text, flags=re.MULTILINE))
        return len(text)


def make_table(title: str, columns: Sequence[str], numeric: Iterable[str] = ()) -> Table:
    """An empty table in the one style of this tool; `numeric` columns align to the right."""
    named = Text(title, style="bold", no_wrap=True, overflow="ignore")  # it may be wider than the table
    table = FittingTable(title=named, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    right = set(numeric)
    for column in columns:
        is_number = column in right
        table.add_column(column, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return table


def result_table(rows: Sequence[ResultRow]) -> Table:
    """Float, rounding-to-nearest and reconstructed side by side; columns that no row fills are left out."""
    evaluations = [row.evaluation for row in rows if row.evaluation is not None]
    measured = [{} if row.evaluation is None else row.evaluation.shown() for row in rows]
    names = sorted({name: None for each in measured for name in each}, key=lambda name: name == "SQNR dB")
    columns = {
        **{_heading(name): [measure(name, each.get(name)) for each in measured] for name in names},
        "weights": ["" if row.size is None else format_bytes(row.size) for row in rows],
        "time": ["" if row.seconds is None else format_seconds(row.seconds) for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    title = f"Result on {evaluations[0].samples} samples" if evaluations else "Result"
    table = make_table(title, ["", *shown], numeric=shown)
    table.columns[0].no_wrap = True
    for index, row in enumerate(rows):
        table.add_row(row.name, *(cells[index] for cells in shown.values()))
    return table


def describe_evaluation(evaluation: Evaluation) -> str:
    """`top-1 82.20 % (float 83.00 %), agreement with float 96.10 %, …`: what was measured, on one line."""
    parts = []
    for name, value in evaluation.shown().items():
        what, _, unit = _heading(name).partition("\n")
        what += " with float" if what == "agreement" and not evaluation.task else ""
        reference = evaluation.reference_metrics.get(name)
        beside = [] if reference is None else [f"float {measure(name, reference)} {unit}".strip()]
        beside += [evaluation.scored] if evaluation.scored and what != "top-5" and unit == "%" else []
        told = f" ({'; '.join(beside)})" if beside else ""
        parts.append(f"{what} {measure(name, value)} {unit}".strip() + told)
    if evaluation.outputs and parts:
        each = ", ".join(f"output {name} {measure('SQNR dB', value)}" for name, value in evaluation.outputs.items())
        plain = evaluation.agreement is None and not evaluation.task
        parts[-1] += f" (the lowest of {each}{'; no class scores' if plain else ''})"
    if not parts and not evaluation.notes:  # a detector that is sure of nothing
        parts = ["nothing to compare: the float network decides nothing there (a detector: no box of score 0.3)"]
    line = ", ".join([*parts, f"{evaluation.samples} samples in {format_seconds(evaluation.seconds)}"])
    return "; ".join([line, *evaluation.notes])


def scope_table(entries: Sequence[ScopeEntry], full: bool = False) -> Table:
    """The quantization scope: a line per kind of treatment, or with `full` a line per op.

    The share is that of all weights and other parameters, each counted where it is read first.
    """
    columns = ("ops", "share\n%", "weights", "inputs", "output", "why")
    title = "Quantization scope (the output of a layer: behind its activation function)"
    table = make_table(title, columns, numeric=("share\n%",))
    total = sum(entry.parameters for entry in entries)
    groups: dict[object, list[ScopeEntry]] = {}
    for entry in entries:
        treatment = (entry.kind, entry.weights, entry.inputs, entry.output, entry.reason)
        groups.setdefault(entry.op if full else treatment, []).append(entry)
    for members in groups.values():
        first = members[0]
        layers = list(dict.fromkeys(member.layer for member in members if member.layer))
        named = f" ({layers[0]})" if len(layers) == 1 else ""
        ops = f"{first.op}{named}" if full else f"{len(members)} {first.kind}{named}"
        parameters = sum(member.parameters for member in members)
        share = f"{100 * parameters / total:.1f}" if parameters else ""
        table.add_row(ops, share, first.weights, first.inputs, first.output, first.reason)
    return table


def losses_table(losses: Sequence[TensorLoss], most: int | None) -> Table:
    """What each quantized tensor costs alone, the worst first; `most` lines, or all."""
    numbers = ("bits", "SQNR\ndB", "output\ndB")
    shown = losses[:most]
    title = f"What each tensor loses alone: the worst {len(shown)} of {len(losses)}"
    table = make_table(title, ["tensor", "kind", *numbers, "read by"], numeric=numbers)
    for each in shown:
        output = measure("SQNR dB", each.output_sqnr)
        if len(each.outputs) > 1:
            output = f"{max(each.outputs, key=each.outputs.__getitem__)}: {output}"
        readers = ", ".join(each.layers[:2]) + (", …" if len(each.layers) > 2 else "")
        table.add_row(each.tensor, each.kind, str(each.bits), measure("SQNR dB", each.sqnr), output, readers)
    return table


def block_table(blocks: Sequence[BlockSummary]) -> Table:
    """One line per block, in order of execution."""
    numbers = ("layers", "parameters", "MACs", "inputs", "outputs")
    table = make_table("Blocks", ["block", *numbers], numeric=numbers)
    for block in blocks:
        table.add_row(
            block.name,
            str(len(block.layers)),
            short_count(block.parameters),
            short_count(block.macs),
            str(len(block.inputs)),
            str(len(block.outputs)),
        )
    return table


def comparison_table(found: Verification) -> Table:
    """The file against the simulator and the quantized network, and what completion costs."""
    numbers = ("same\n%", "largest\nsteps", "mean\nsteps", "agreement\n%")
    table = make_table(f"{found.runtime} on {found.samples} samples", ["", *numbers], numeric=numbers)
    for name, row in (
        ("file against the integer simulator", found.simulator),
        ("file against the fake-quantized network", found.quantized),
        ("of that, by completing the program", found.completion),
    ):
        agreement = measure("agreement %", row.agreement)
        table.add_row(name, _percent(row.identical), f"{row.largest:.3g}", f"{row.mean:.3g}", agreement)
    return table


def _percent(share: float) -> str:
    """Never rounded up to 100: one differing code has to show."""
    return f"{min(share, 99.99) if share < 100 else 100:.2f}"


def codes_table(tensors: Sequence[CodesCompared]) -> Table:
    """Tensors whose codes differ, in order of execution."""
    numbers = ("differing", "of", "largest", "off the border\nsteps")
    table = make_table("Codes that differ", ["tensor", *numbers], numeric=numbers)
    for each in tensors:
        row = (str(each.differing), str(each.count), str(each.largest), f"{each.border:.2g}")
        table.add_row(each.tensor, *row)
    return table


def describe_differing(found: Verification) -> str:
    """How many codes differ, how near their values are to the border, and what follows from the file's codes."""
    count, differing = (sum(getattr(each, key) for each in found.tensors) for key in ("count", "differing"))
    border = max(each.border for each in found.tensors)
    text = f"{differing} of {count} differ, of values at most {border:.2g} steps from the border between two codes"
    if found.followed is None:
        return text
    return f"{text}; from the file's codes the simulator puts out {_percent(found.followed.identical)} % equal values"


def distances_table(far: Sequence[Distance], most: int) -> Table:
    """How far tensors of an exported file are from the float network's, the worst first."""
    title = f"Against the float network: the worst {min(most, len(far))} of {len(far)} tensors"
    table = make_table(title, ["tensor", "SQNR\ndB"], numeric=("SQNR\ndB",))
    for each in far[:most]:
        table.add_row(each.tensor, measure("SQNR dB", each.sqnr))
    return table


def latency_table(measured: Benchmark) -> Table:
    """Milliseconds per call, float and quantized side by side."""
    numbers = ("batch", "shortest\nms", "median\nms", "CPU\nms", "runs", "speed")
    threads = f"{measured.threads} thread{'s' if measured.threads > 1 else ''}"
    table = make_table(f"Latency in {measured.runtime}, {threads}", ["", *numbers], numeric=numbers)
    for name, latencies in (("float", measured.floating), ("quantized", measured.quantized)):
        for each in latencies:
            speedup = measured.speedup(each.batch) if name == "quantized" else None
            table.add_row(
                name, str(each.batch), f"{each.shortest:.2f}", f"{each.median:.2f}", f"{each.cpu:.2f}",
                str(each.runs), "" if speedup is None else f"{speedup:.2f}×",
            )  # fmt: skip
    return table


def describe_kernels(kernels: Kernels) -> str:
    """`50 of 50 convolutions and linear layers are integer kernels`"""
    total = kernels.integer + kernels.floating
    return f"{kernels.integer} of {total} convolutions and linear layers are integer kernels"


def match_table(layers: Sequence[LayerMatch], most: int = 12) -> Table:
    """How well batch norm statistics are met, before and after; of more than `most` layers an even selection."""
    numbers = ("mean\nnoise", "mean\ndistilled", "deviation\nnoise", "deviation\ndistilled")
    title = "Distance from the stored statistics, in standard deviations"
    table = make_table(title, ["batch norm", *numbers], numeric=numbers)
    count = min(most, len(layers))
    shown = [layers[index * (len(layers) - 1) // max(count - 1, 1)] for index in range(count)]
    columns = [[layer.mean_before, layer.mean_after, layer.std_before, layer.std_after] for layer in layers]
    for layer in shown:
        cells = (layer.mean_before, layer.mean_after, layer.std_before, layer.std_after)
        table.add_row(layer.layer, *(significant(value) for value in cells))
    mean = [sum(column) / len(layers) for column in zip(*columns, strict=True)]
    table.add_row(f"mean of all {len(layers)}", *(significant(value) for value in mean), style="bold")
    return table


def _heading(name: str) -> str:
    """The unit on a line of its own."""
    what, _, unit = name.rpartition(" ")
    return f"{what}\n{unit}" if what and unit in ("%", "dB") else name
