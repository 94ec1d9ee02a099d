"""Recipes side by side on validation images: what a default is chosen by. Many processes, one thread each.

    python benchmarks/choose.py --jobs 2 'resnet20,resnet32 W2A2,W2A4 0 fast steps=100 tuning=4'
    python benchmarks/choose.py --jobs 14 --seconds 400 --plan benchmarks/choose_parts.txt
    python benchmarks/choose.py --pack FOLDER      # the data for a machine that has none; name it in BRECQ_DATA
    python benchmarks/choose.py --table

A line of the plan is a measurement: networks, settings, seeds (each separated by commas), a recipe and its changes,
with `calibration=N` for other numbers of samples, `config.NAME=VALUE` for other settings than the recipe's and
`block.NAME=PATTERN,PATTERN` for blocks of one's own; the lines in the order of their importance. Validation images are
those that no table reports: training images of CIFAR-10 that are not calibrated on, half of the ImageNet ones.
Finished cells are kept in benchmarks/results/choose.jsonl; what has not finished after `--seconds` is given up.
`--pack` takes a part of the ImageNet images only.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from cells import VALIDATION, Cell, Results, Values, add_jobs, bits, parse_recipe, parser, run_apart
from common import CALIBRATION, DATA, chosen_by, quality_on, quantized, require

from brecq import QuantConfig
from brecq.text import parse_blocks, parse_settings

PACKED = {"imagenet_calib": 256, "imagenet_val/images": 300}
"""Images that `--pack` takes along."""

LABELS = Path("imagenet_val", "labels.csv")


def main() -> None:
    options = arguments()
    if options.pack:
        pack(options.pack)
        return
    results = Results(options.results)
    lines = [*options.lines, *(options.plan.read_text().splitlines() if options.plan else [])]
    cells = [cell for line in lines if line.strip() and line[0] != "#" for cell in cells_of(line)]
    if not options.table:
        run_apart(cells, results, partial(measure, device=options.device), options)
    print(table(results.records))


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "choose.jsonl")
    found.add_argument("lines", nargs="*", metavar="LINE", help="networks, settings, seeds, recipe and changes")
    found.add_argument("--plan", type=Path, metavar="FILE", help="a file of such lines")
    add_jobs(found)
    found.add_argument("--pack", type=Path, metavar="FOLDER", help="write the data that this needs, and nothing else")
    return found.parse_args()


def table(records: Sequence[dict[str, Any]]) -> str:
    """Everything that was ever measured, also by settings that are no more, in Markdown."""
    quality = ("top-1", "agreement", "SQNR, dB", "error, tuned")
    head = ("network", "setting", "seed", *quality, "seconds", "peak, GB", "recipe")
    lines = [f"| {' | '.join(head)} |", f"|---|---|{'---:|' * 7}---|"]
    for record in sorted(records, key=lambda r: (r["network"], r["column"], r["key"]["config"]["seed"])):
        v = record["values"]
        numbers = f"{v['top1']:.2f} | {v['agreement']:.2f} | {v['sqnr']:.2f}"
        errors = f"{v['error_before']:.4f} → {v['error_after']:.4f}"
        seed = record["key"]["config"]["seed"]
        start = f"| {record['network']} | {record['column']} | {seed} | {numbers} | {errors} |"
        lines.append(f"{start} {v['cpu_seconds']:.0f} | {v['peak_bytes'] / 1e9:.2f} | `{record['row']}` |")
    return "\n".join(lines)


def cells_of(line: str) -> Iterator[Cell]:
    """`resnet20,resnet32 W2A2,W2A4 0,1 fast steps=100`"""
    networks, settings, seeds, name, *changes = line.split()
    calibration = [int(change.split("=")[1]) for change in changes if change.startswith("calibration=")]
    changes = [change for change in changes if not change.startswith("calibration=")]
    others = parse_settings("configuration", _named("config.", changes), get_type_hints(QuantConfig))
    others["blocks"] = parse_blocks("block", _named("block.", changes))
    recipe = parse_recipe(name, [change for change in changes if not change.startswith(("config.", "block."))])
    for seed in seeds.split(","):
        for setting in settings.split(","):
            for one in networks.split(","):
                count = calibration[0] if calibration else CALIBRATION[one]
                config = QuantConfig(*bits(setting), recipe=recipe, seed=int(seed), **others)
                row = " ".join([name, *changes, *(f"from {count}" for _ in calibration)])
                yield Cell(one, row, setting, count, 0, config, VALIDATION)


def _named(prefix: str, changes: Sequence[str]) -> list[str]:
    return [change.removeprefix(prefix) for change in changes if change.startswith(prefix)]


def measure(cell: Cell, device: str) -> Values:
    assert cell.config is not None
    result, cost = quantized(cell.network, cell.calibration, cell.config, device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    last = result.report.blocks[-1]
    quality = quality_on(cell.network, result.model, chosen_by(cell.network), device)
    tuned = {"error_before": last.error_before, "error_after": last.error_after}
    return {**cost, **quality, **tuned, "peak_bytes": peak}


def pack(folder: Path) -> None:
    """A folder to name in BRECQ_DATA: the training images of CIFAR-10, its networks, and a part of the ImageNet
    images, those that would be drawn first."""
    for weights in ("cifar10_resnet20", "cifar10_resnet32", "imagenet_squeezenet1_1"):
        copy(Path("weights", f"{weights}.safetensors"), folder)
    with np.load(require(DATA / "cifar10.npz")) as arrays:
        np.savez_compressed(folder / "cifar10.npz", x_train=arrays["x_train"], y_train=arrays["y_train"])
    for images, count in PACKED.items():
        names = sorted(path.relative_to(DATA) for path in require(DATA / images).rglob("*.*"))
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
        for i in order[:count]:
            copy(names[i], folder)
    header, *labels = (DATA / LABELS).read_text().splitlines()
    kept = [line for line in labels if (folder / LABELS.parent / "images" / line.split(",")[0]).exists()]
    (folder / LABELS).write_text("\n".join([header, *kept]))


def copy(name: Path, folder: Path) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(require(DATA / name), folder / name)


if __name__ == "__main__":
    main()
