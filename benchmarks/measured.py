"""Cells of tables: the newest records of what was measured, seeds averaged.

A cell is the newest record in benchmarks/results/ with that network, row and column; records that differ from it in
nothing but their seed are averaged. What was measured before the recipe had the setting `SINCE` is left out of the
tables of accuracy (`CURRENT`), and marked † in the others.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
SINCE = "correction"
CURRENT = ("choose", "clock", "data_free", "mixed_precision", "tasks")
"""Results of which a page shows no earlier version's."""
WIDENED = ("clock", "tasks")
"""Those, too, that are shown with the present default of `first_last_outputs` alone."""
Record = dict[str, Any]
Lines = list[list[str]]


@dataclass(frozen=True)
class Show:
    """A number of a record: `row` as it is called there, the key of its value, its unit's factor, digits shown.

    `where`: what its configuration has to be (`placement`, `target`, ...), beside the defaults of `newest`; `column`:
    the record's, where that is not the table's.
    """

    row: str
    key: str = "top1"
    digits: int = 2
    factor: float = 1.0
    where: dict[str, Any] = field(default_factory=dict)
    column: str | None = None


@lru_cache
def records(file: str) -> list[Record]:
    """Lines of a results file, oldest first."""
    lines = (RESULTS / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def newest(file: str, network: str, column: str, show: Show) -> list[Record]:
    """The newest record of every seed of the newest configuration; empty where nothing was measured.

    A record without a column (the float network's, say) stands in all of them.
    """
    where = {"placement": "output", "target": None, **show.where}
    wanted = column if show.column is None else show.column

    def fits(record: Record) -> bool:
        config = record["key"]["config"]
        same = config is None or all(config.get(name) == value for name, value in where.items())
        dated = (file in CURRENT and _earlier(record)) or (file in WIDENED and _narrow(record))
        named = (record["network"], record["row"]) == (network, show.row) and record["column"] in ("", wanted)
        return named and same and not dated

    found = [record for record in records(file) if fits(record) and show.key in record["values"]]
    seeds = {_seed(record): record for record in found if _but_seed(record) == _but_seed(found[-1])}
    return list(seeds.values())


def cell(file: str, network: str, column: str, show: Show) -> str:
    """`80.21`, or of several seeds `80.21 ± 0.13` (mean and sample standard deviation); empty without any."""
    found = newest(file, network, column, show)
    numbers = [show.factor * record["values"][show.key] for record in found]
    if not numbers:
        return ""
    spread = f" ± {statistics.stdev(numbers):.{show.digits}f}" if len(numbers) > 1 else ""
    shown = f"{statistics.mean(numbers):.{show.digits}f}"
    if not show.digits and not spread:
        shown = f"{int(shown):,}".replace(",", " ")
    return shown + spread + (" †" if any(map(_earlier, found)) else "")


def grid(file: str, network: str, columns: Sequence[str], rows: dict[str, Show], corner: str = "") -> Lines:
    """A table with a row for each of `rows`, by the name it is given here. Rows without a number are left out."""
    lines = [[name, *(cell(file, network, column, show) for column in columns)] for name, show in rows.items()]
    return [[corner, *columns], *(line for line in lines if any(line[1:]))]


def written(lines: Lines) -> str:
    """Markdown; the first line is the head, numbers are on the right."""
    head, *rest = lines
    right = [all(re.match(r"[-−]?\d|$", line[i]) for line in rest) for i in range(len(head))]
    rule = "|".join("---:" if number and i else "---" for i, number in enumerate(right))
    return "\n".join([_line(head), f"|{rule}|", *map(_line, rest)])


def name_of(network: str) -> str:
    names = {
        "efficientnet_lite0": "EfficientNet-lite0", "squeezenet1_1": "SqueezeNet 1.1", "unet": "U-Net", "vit": "ViT",
        "mobilenetv3_small": "MobileNetV3-small", "nanodet_m": "NanoDet-m",
    }  # fmt: skip
    return names.get(network) or network.replace("resnet", "ResNet-")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def _earlier(record: Record) -> bool:
    config = record["key"]["config"]
    if not config or config["method"] == "rtn":
        return False
    return SINCE not in config["recipe"]


def _narrow(record: Record) -> bool:
    """Whether what the first layer puts out has as few bits as other activations, which was the default once."""
    config = record["key"]["config"]
    return bool(config) and config["activations"] < 8 and not config.get("first_last_outputs")


def _seed(record: Record) -> int:
    return (record["key"]["config"] or {}).get("seed", 0)


def _but_seed(record: Record) -> Record:
    config = record["key"]["config"]
    return {**record["key"], "config": config and {**config, "seed": 0}}
