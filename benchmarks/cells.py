"""Measurements that survive an interruption: cells of a table, the file they are kept in, and the table in Markdown.

A cell is identified by everything that determines it, the whole configuration included. Cells that the file holds
are not measured again; when a default of a recipe changes, its cells are other ones, and are measured anew.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch

from brecq import QuantConfig, Recipe
from brecq.cli.render import format_seconds
from brecq.reconstruct.sizes import BATCHES
from brecq.text import parse_settings

RESULTS = Path(__file__).resolve().parent / "results"
BEFORE = {"correction": 1.0}
"""What settings of a recipe that came later were before they could be set, where their default is another now."""
SMALL = ("resnet20", "resnet32", "denoiser", "unet")
"""Networks of small samples, whose steps are of more of them."""
Values = dict[str, float]
VALIDATION = "validation"
"""The `detail` of cells that are measured on data to choose by, which no table shows."""


@dataclass(frozen=True)
class Cell:
    """One measurement. `row` and `column` say where it stands in the table of `network`; they do not identify it.

    Cells with equal network, row and column and different seeds are averaged. An empty column stands in all of them.
    `config` is `None` for the float network. `calibration` and `samples` are numbers of inputs. `detail` is whatever
    else determines the result, such as the runtime that it was measured in.
    """

    network: str
    row: str
    column: str
    calibration: int
    samples: int
    config: QuantConfig | None = None
    detail: str = ""

    def key(self) -> dict[str, Any]:
        """What determines the result, as JSON gives it back."""
        config = None if self.config is None else _settings(self.config)
        if config is not None and "batch_size" in config["recipe"] and config["recipe"]["batch_size"] is None:
            small = self.network in SMALL or "cuda" in self.detail
            config["recipe"]["batch_size"] = BATCHES[small]
        calibration = 0 if config is None else self.calibration
        key = {"network": self.network, "calibration": calibration, "samples": self.samples, "config": config}
        if self.detail:
            key["detail"] = self.detail
        found: dict[str, Any] = json.loads(json.dumps(key))
        return found


class Results:
    """A file of JSON lines, one per measured cell; only ever appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.records: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """The record of `cell`, the newest one."""
        key = cell.key()
        return next((record for record in reversed(self.records) if _now(record["key"]) == key), None)

    def add(self, cell: Cell, values: Values) -> None:
        """Keep what was measured, and under which circumstances."""
        record = {
            "network": cell.network,
            "row": cell.row,
            "column": cell.column,
            "values": values,
            "key": cell.key(),
            "environment": environment(),
            "command": command(),
            "date": time.strftime("%Y-%m-%d"),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.records.append(record)


def _settings(config: QuantConfig) -> dict[str, Any]:
    """Those that determine a result."""
    found = config.to_dict()
    found["recipe"].pop("name")
    if found["method"] == "rtn":  # of the recipe only ranges matter then
        found["recipe"] = {key: value for key, value in found["recipe"].items() if key.startswith("range_")}
    return found


def _now(key: dict[str, Any]) -> dict[str, Any]:
    """The key of a record as it would be today: a setting that came later has its default, or what it was `BEFORE`."""
    if key["config"] is None:
        return key
    defaults = json.loads(json.dumps(_settings(QuantConfig(method=key["config"]["method"]))))
    later = {name: BEFORE.get(name, value) for name, value in defaults["recipe"].items()}
    recipe = {**later, **key["config"]["recipe"]}
    config = {**defaults, **key["config"], "recipe": recipe}
    if config["activations"] >= (config["first_last"] or 0):  # there it changes nothing
        config["first_last_outputs"] = defaults["first_last_outputs"]
    return {**key, "config": config}


def run(cells: Sequence[Cell], results: Results, measure: Callable[[Cell], Values]) -> None:
    """Measure the cells that `results` lacks, telling on standard error how far it is."""
    for number, cell in enumerate(cells, 1):
        name = f"[{number}/{len(cells)}] {cell.network} {cell.row} {cell.column}"
        record = results.find(cell)
        known = "" if record is None else "  (measured before)"
        if record is None:
            values = measure(cell)
            results.add(cell, values)
        else:
            values = record["values"]
        took = f"  {format_seconds(values['seconds'])}" if "seconds" in values else ""
        top1 = f"  top-1 {values['top1']:.2f} %" if "top1" in values else ""
        print(f"{name}{top1}{took}{known}", file=sys.stderr, flush=True)


def run_apart(
    cells: Sequence[Cell], results: Results, measure: Callable[[Cell], Values], options: argparse.Namespace
) -> None:
    """Measure the cells that `results` lacks, `--jobs` at once, each in a process of its own, on one thread.

    What has not ended after `--seconds` is given up.
    """
    different = {json.dumps(cell.key()): cell for cell in cells}.values()
    missing = [cell for cell in different if results.find(cell) is None]
    began = time.monotonic()
    # spawned: a process that was forked cannot use a GPU; one task each, as a peak of memory is never taken back
    pool = multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1)
    with pool:  # terminated at the end
        found = pool.imap_unordered(partial(_attempt, measure), missing, chunksize=1)
        for number in range(1, len(missing) + 1):
            try:
                cell, values, error = found.next(max(0.0, options.seconds - (time.monotonic() - began)))
            except multiprocessing.TimeoutError:
                print(f"time is over; {len(missing) - number + 1} cells are missing", file=sys.stderr)
                break
            if values is None:
                print(f"{cell.network} {cell.column} {cell.row}: {error}", file=sys.stderr, flush=True)
                continue
            results.add(cell, values)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
            at = f"[{number}/{len(missing)}, {time.monotonic() - began:.0f} s]"
            print(f"{at} {cell.network} {cell.column} {cell.row}: {shown}", file=sys.stderr, flush=True)


def _attempt(measure: Callable[[Cell], Values], cell: Cell) -> tuple[Cell, Values | None, str]:
    """The cell, and its values or what went wrong."""
    torch.set_num_threads(1)
    try:
        return cell, measure(cell), ""
    except Exception as error:  # one cell's failure is not the end of the others
        return cell, None, f"{type(error).__name__}: {error}"


def run_and_print(
    options: argparse.Namespace,
    cells: Sequence[Cell],
    measure: Callable[[Cell], Values],
    measures: dict[str, tuple[str, float, int]],
    apart: bool = False,
) -> None:
    """Measure what is missing, unless only the tables are asked for, and print the tables; `apart`: by `run_apart`."""
    results = Results(options.results)
    if not options.table:
        (run_apart(cells, results, measure, options) if apart else run(cells, results, measure))
    print(tables(cells, results, measures))


def tables(cells: Sequence[Cell], results: Results, measures: dict[str, tuple[str, float, int]]) -> str:
    """For every network a Markdown table per measure, and where they come from.

    Args:
        measures: for a key of the values, the title of its table, the factor to its unit, and the digits shown.
    """
    lines: list[str] = []
    for network in dict.fromkeys(cell.network for cell in cells):
        mine = [cell for cell in cells if cell.network == network]
        for key, (title, factor, digits) in measures.items():
            rows = _table(mine, results, key, factor, digits)
            lines += [f"**{network}**, {title}", "", *rows, ""] if len(rows) > 2 else []  # nothing of it was measured
    records = [record for cell in cells if (record := results.find(cell)) is not None]
    lines += ["Measured on:", *_unique(f"- {record['environment']}" for record in records), ""]
    lines += ["```", *_unique(record["command"] for record in records), "```"]
    return "\n".join(lines)


def _table(cells: Sequence[Cell], results: Results, key: str, factor: float, digits: int) -> list[str]:
    columns = [column for column in dict.fromkeys(cell.column for cell in cells) if column]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for row in dict.fromkeys(cell.row for cell in cells):
        texts = []
        for column in columns:
            found = [results.find(cell) for cell in cells if cell.row == row and cell.column in ("", column)]
            numbers = [factor * record["values"][key] for record in found if record and key in record["values"]]
            texts.append(_mean(numbers, digits))
        if any(texts):
            lines.append(f"| {row} | {' | '.join(texts)} |")
    return lines


def _mean(numbers: Sequence[float], digits: int) -> str:
    """`80.21`, or of several `80.21 ± 0.13`: mean and sample standard deviation; empty without any."""
    if not numbers:
        return ""
    spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{spread}"


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def environment() -> str:
    """`AMD EPYC 7B13, 2 cores, 2 threads; Python 3.11.2, torch 2.14.1`"""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"model name\s*:\s*(.+)", info.read_text())
        cpu = match[1].strip() if match else cpu
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return f"{cpu}, {cores} cores, {threads} threads; Python {platform.python_version()}, torch {torch.__version__}"


def command() -> str:
    """The command line of this program, as typed in the repository."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def parser(document: str | None, results: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have; `results` is the name of their results file."""
    found = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="repeat with these seeds")
    found.add_argument("--threads", type=int, metavar="N", help="threads to compute on (default: PyTorch's)")
    found.add_argument("--steps", type=int, metavar="N", help="steps per block in place of the recipes' own")
    found.add_argument("--results", type=Path, default=RESULTS / results, metavar="FILE", help="results file")
    found.add_argument("--table", action="store_true", help="measure nothing, print the table of what there is")
    return found


def add_jobs(found: argparse.ArgumentParser) -> None:
    """The options of the benchmarks that may run cells side by side, see `run_apart`, and on a GPU."""
    found.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, each on one thread")
    found.add_argument("--seconds", type=float, default=1e9, metavar="S", help="of several jobs: give up then")
    found.add_argument("--device", default="cpu", help="cpu or cuda")


def detail_of(options: argparse.Namespace) -> str:
    """What `--validation` and `--device` make of a cell."""
    return ", ".join([*[VALIDATION] * options.validation, *["cuda"] * (options.device != "cpu")])


def bits(setting: str) -> tuple[int, int]:
    """`W4A8` → (4, 8): bits of weights and activations."""
    match = re.fullmatch(r"W(\d+)A(\d+)", setting)
    if match is None:
        raise SystemExit(f"the setting is {setting!r}; write it like W4A8, with 32 for float")
    return int(match[1]), int(match[2])


def parse_recipe(name: str, changes: Sequence[str]) -> Recipe:
    """The preset `name` with `changes`, such as `steps=100`."""
    return change(Recipe.preset(name), changes)


def change(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """`recipe` with `changes`, such as `steps=100`."""
    return recipe.replace(**parse_settings("recipe", changes, get_type_hints(Recipe)))


def with_steps(recipe: Recipe, steps: int | None, scale: float = 1.0) -> Recipe:
    """`recipe` with other steps: `steps` in each of its stages, or `scale` times its own."""
    if steps is not None:
        return recipe.replace(steps=steps, activation_steps=0 if recipe.joint else steps)
    return recipe.replace(
        steps=recipe.steps and max(1, round(scale * recipe.steps)),
        activation_steps=round(scale * recipe.activation_steps),
    )


def describe_steps(recipe: Recipe) -> str:
    """`400 steps`, or of two stages `20000 + 5000 steps`."""
    return f"{recipe.steps}{'' if recipe.joint else f' + {recipe.activation_steps}'} steps"
