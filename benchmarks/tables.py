"""The tables of the documentation, written between their markers from what was measured.

    python benchmarks/tables.py             # fills README.md and docs/*.md in
    python benchmarks/tables.py --check     # changes nothing; fails where a page says something else

A page holds `<!-- table: NAME -->`, the table, and `<!-- end -->`; `TABLES` says what NAME is. A cell of a table is
the newest record in benchmarks/results/ with that network, row and column; records that differ from it in nothing but
their seed are averaged. So a page follows when a cell is measured again, and only then. What was measured before the
recipe had the setting `SINCE` is left out of the tables of accuracy (`CURRENT`), and marked † in the others.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)
SINCE = "correction"
CURRENT = ("cifar", "clock", "tasks")
"""Results of which a page shows no earlier version's."""
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
    """Lines of a results file, oldest first; the clock's cells are measured as those of the CIFAR table are."""
    paths = [RESULTS / f"{name}.jsonl" for name in ((file, "clock") if file == "cifar" else (file,))]
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
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
        dated = file in CURRENT and _earlier(record)
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


def filled(text: str) -> str:
    """A page with its tables written in.

    Raises:
        KeyError: a marker names no table.
    """
    return MARKED.sub(lambda found: f"{found[1]}{written(TABLES[found[2]]())}{found[4]}", text)


def pages() -> list[Path]:
    """The pages with markers."""
    every = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    return [page for page in every if MARKED.search(page.read_text(encoding="utf-8"))]


def main() -> None:
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if filled(text) != text:
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in sys.argv:
                page.write_text(filled(text), encoding="utf-8")
    if stale and "--check" in sys.argv:
        raise SystemExit(f"stale: {', '.join(stale)}; run python benchmarks/tables.py")
    print("written:" if stale else "nothing to do", *stale)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def _earlier(record: Record) -> bool:
    config = record["key"]["config"]
    if not config or config["method"] == "rtn":
        return False
    return SINCE not in config["recipe"]


def _seed(record: Record) -> int:
    return (record["key"]["config"] or {}).get("seed", 0)


def _but_seed(record: Record) -> Record:
    config = record["key"]["config"]
    return {**record["key"], "config": config and {**config, "seed": 0}}


FLOAT, NEAREST = Show("float"), Show("rounding to nearest")
CIFAR = ("W4A32", "W3A32", "W2A32", "W4A4", "W2A4", "W3A3", "W2A2")
CLOCK = ("W2A32", "W4A4", "W3A3", "W2A4", "W2A2")
FAST = "fast (300 steps)"
ON_GPU = f"{FAST}, on a GPU"
EXPORTS = ("efficientnet_lite0", "resnet20", "mobilenetv3_small", "unet", "nanodet_m", "vit")
EXPORTED = {
    "ONNX Runtime": "onnxruntime", "OpenVINO": "openvino", "LiteRT": "litert", "TensorRT": "tensorrt",
    "Qualcomm": "qualcomm", "CMSIS-NN": "cmsis-nn", "web": "onnxruntime", "PyTorch": None, "QONNX": None,
}  # fmt: skip
"""Rows of deploy.py, and the targets that their networks are initialized for."""
SHORT = ("fast (25 steps)", "fast (100 steps)")
AUTHORS = {"W2A32": (78.95, 2103), "W2A4": (77.25, 3040)}
"""ResNet-20: top-1 and processor seconds of the authors' code, 20 000 steps a block on the weights, 5 000 on steps."""


def cifar(network: str, recipes: Sequence[str]) -> Lines:
    learned = {name: Show(name) for name in recipes}
    return grid(
        "cifar", network, CIFAR, {"float": FLOAT, "rounding to nearest": NEAREST, **learned}, corner=_name(network)
    )


def cifar_seconds() -> Lines:
    head = ["", *CIFAR]
    rows = [("resnet20", FAST), ("resnet20", "instant")]
    lines = [
        [f"{_name(network)}, {row}", *(cell("cifar", network, c, Show(row, "cpu_seconds", 0)) for c in CIFAR)]
        for network, row in rows
    ]
    return [head, *lines]


def clock(network: str, columns: Sequence[str], recipes: Sequence[str], authors: bool = False) -> Lines:
    """What each of `recipes` reaches and costs; `authors`: beside what the authors' code did, see clock.py."""
    lines = grid("clock", network, columns, {"float": FLOAT, **{row: Show(row) for row in (NEAREST.row, *recipes)}})
    if authors:
        lines.append(
            ["the authors' code, 20 000 steps", *(f"{AUTHORS[c][0]}" if c in AUTHORS else "" for c in columns)]
        )
    for title, key, digits in (
        ("agreement with float in percent", "agreement", 2),
        ("SQNR of the logits in dB", "sqnr", 1),
        ("processor seconds to quantize", "cpu_seconds", 0),
    ):
        lines += grid("clock", network, columns, {f"{title}, {row}": Show(row, key, digits) for row in recipes})[1:]
    if authors:
        seconds = (f"{AUTHORS[c][1]:,}".replace(",", " ") if c in AUTHORS else "" for c in columns)
        lines.append(["processor seconds, the authors' code", *seconds])
    return [[_name(network), *columns], *lines[1:]]


def headline() -> Lines:
    """The README's table: a row for each network and width."""
    lite, resnet = "EfficientNet-lite0, ImageNet subset, `fast`", "ResNet-20, CIFAR-10, `fast`"
    instant = "ResNet-20, CIFAR-10, `instant`"
    squeeze = "SqueezeNet 1.1, ImageNet subset, 45 steps a block"
    rows = [
        *((lite, "clock", "efficientnet_lite0", bits, ON_GPU) for bits in ("W4A8", "W4A4", "W2A8")),
        (squeeze, "clock", "squeezenet1_1", "W2A8", "fast (45 steps)"),
    ]
    rows += [(resnet, "cifar", "resnet20", bits, FAST) for bits in CLOCK]
    rows += [(instant, "cifar", "resnet20", bits, "instant") for bits in ("W2A32", "W2A4")]
    lines, last = [["network", "bits", "float", "rounding to nearest", "brecq"]], ""
    for name, file, network, bits, row in rows:
        shown = [cell(file, network, bits, show) for show in (FLOAT, NEAREST, Show(row))]
        lines.append(["" if name == last else name, bits, *shown])
        last = name
    return lines


def tasks(network: str, keys: dict[str, tuple[str, int]]) -> Lines:
    """Every row that was measured, under each of the task's numbers."""
    mine = [each for each in records("tasks") if each["network"] == network]
    named = dict.fromkeys(each["row"] for each in mine if "validation" not in each["key"].get("detail", ""))
    shown = {(title, row): Show(row, *keys[title]) for title in keys for row in named if row != "float"}
    rows = {f"{title}, {row}": show for (title, row), show in shown.items()}
    return grid("tasks", network, ("W8A8", "W4A8", "W4A4"), rows)


def in_parts() -> Lines:
    """Detectors of torchvision: their captured parts in float, and rounded."""
    names = {"RetinaNet": "retinanet_resnet50_fpn", "Faster R-CNN": "fasterrcnn_resnet50_fpn"}
    worst = "SQNR of the worst output in dB, rounding to nearest, "
    shown = {
        "boxes that differ, captured parts in float, percent": Show("float", "flips", 1),
        **{worst + bits: Show(NEAREST.row, "sqnr", 1, column=bits) for bits in ("W8A8", "W4A8")},
        "blocks": Show(NEAREST.row, "blocks", 0, column="W8A8"),
        "processor seconds, W8A8": Show(NEAREST.row, "cpu_seconds", 0, column="W8A8"),
    }
    lines = [[name, *(cell("tasks", each, "W8A8", show) for each in names.values())] for name, show in shown.items()]
    return [["", *names], *lines]


def matrix() -> Lines:
    """What `deploy.py --matrix` measures: networks and measures down, targets across."""
    keys = {
        "file, MB": ("megabytes", 2), "codes that differ": ("codes", 0), "outputs equal, %": ("simulator", 1),
        "steps off": ("mean", 2), "predictions equal, %": ("agreement", 1), "steps apart": ("quantized", 2),
        "times faster": ("speed_1", 2),
    }  # fmt: skip
    lines = [["", *EXPORTED]]
    for network in EXPORTS:
        for number, (title, (key, digits)) in enumerate(keys.items()):
            cells = [_exported(network, target, key, digits, refused=not number) for target in EXPORTED]
            lines += [[f"{_name(network)}: {title}", *cells]] if any(cells) else []
    return lines


def _exported(network: str, target: str, key: str, digits: int, refused: bool) -> str:
    where = {"target": EXPORTED[target]}
    if refused and newest("deploy", network, "W8A8", Show(target, "refused", where=where)):
        return "refused"
    return cell("deploy", network, "W8A8", Show(target, key, digits, where=where))


def litert(network: str, columns: tuple[str, ...], more: Mapping[str, tuple[str, int]] = {}) -> Lines:
    """A network for LiteRT, and `more` of its measures."""
    keys = {
        "file, MB": ("megabytes", 2), "over the ideal size, %": ("over", 1), "codes that differ": ("codes", 0),
        "outputs equal to the simulator's, %": ("simulator", 2), "predictions equal to its, %": ("same", 1),
        "predictions that are the fake-quantized network's, %": ("agreement", 1),
        "times less processor time than float": ("speed_1", 2), **more,
    }  # fmt: skip
    shown = {name: Show("LiteRT", *each, where={"target": "litert"}) for name, each in keys.items()}
    return grid("deploy", network, columns, shown)


def _name(network: str) -> str:
    names = {
        "efficientnet_lite0": "EfficientNet-lite0", "squeezenet1_1": "SqueezeNet 1.1", "unet": "U-Net", "vit": "ViT",
        "mobilenetv3_small": "MobileNetV3-small", "nanodet_m": "NanoDet-m",
    }  # fmt: skip
    return names.get(network) or network.replace("resnet", "ResNet-")


DETECTED = {
    "AP": ("AP %", 2), "AP50": ("AP50 %", 2), "boxes that changed, percent": ("flips", 1),
    "SQNR of the worst output in dB": ("sqnr", 1), "processor seconds": ("cpu_seconds", 0),
}  # fmt: skip
SEGMENTED = {"pixels of the same class, percent": ("pixel accuracy %", 2), "mIoU, percent": ("mIoU %", 1)}
RESTORED = {"PSNR in dB": ("PSNR dB", 2), "SQNR of the output in dB": ("sqnr", 1)}

TABLES: dict[str, Callable[[], Lines]] = {
    "headline": headline,
    "cifar-resnet20": partial(cifar, "resnet20", (FAST, "instant")),
    "cifar-seconds": cifar_seconds,
    "clock-resnet20": partial(clock, "resnet20", CLOCK, ("instant", *SHORT, FAST), authors=True),
    "clock-efficientnet_lite0": partial(
        clock, "efficientnet_lite0", ("W4A8", "W4A4", "W2A8"), ("instant", "fast (75 steps)", ON_GPU)
    ),
    "clock-squeezenet1_1": partial(clock, "squeezenet1_1", ("W2A8", "W4A4"), ("fast (45 steps)",)),
    "tasks-nanodet_m": partial(tasks, "nanodet_m", DETECTED),
    "tasks-deeplabv3_mnv2": partial(tasks, "deeplabv3_mnv2", SEGMENTED),
    "tasks-in-parts": in_parts,
    "tasks-denoiser": partial(tasks, "denoiser", RESTORED),
    "deploy-matrix": matrix,
    "deploy-four-bits": partial(litert, "efficientnet_lite0", ("W4A8",)),
    "deploy-sixteen-bits": partial(
        litert,
        "resnet20",
        ("W8A16", "W4A16"),
        {"top-1 of the float network, %": ("top1_float", 2), "top-1 of the file, %": ("top1_file", 2)},
    ),
}

if __name__ == "__main__":
    main()
