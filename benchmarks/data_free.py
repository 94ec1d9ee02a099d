"""What calibration data is worth: real, distilled, out-of-domain, crops of a few photographs, noise.

    python benchmarks/data_free.py
    python benchmarks/data_free.py --networks resnet20 --seeds 0 1 2
    python benchmarks/data_free.py --networks efficientnet_lite0 --sources real fast noise --settings W2A4
    python benchmarks/data_free.py --networks resnet20 --seeds 0 1 2 --sources real fast --blocks-alone
    python benchmarks/data_free.py --networks squeezenet1_1 --settings W4A8 W4A4
    python benchmarks/data_free.py --table

First and last layer at 8 bits, recipe `fast` with fewer steps. Distilled sets are made once, with seed 0, and kept in
benchmarks/out/data_free with a contact sheet each; the seeds are those of the reconstruction. Finished cells are kept
in benchmarks/results/data_free.jsonl and not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cells import Cell, Values, bits, parser, run_and_print, with_steps
from common import CIFAR_TEST, DATA, IMAGENET, calibration_data, network, quality, require, use_threads
from rich.console import Console
from torch import Tensor, nn

import brecq
from brecq import Dataset, DistillConfig, QuantConfig, Recipe
from brecq.checkpoint.resume import has_run
from brecq.cli.progress import PlainProgress
from brecq.data import Preprocessing, load_data, random_crops
from brecq.synthesis.distill import synthesize
from brecq.synthesis.inputs import input_spec
from brecq.synthesis.match import measure_match
from brecq.synthesis.norms import find_batch_norms, stored_moments, watch_inputs
from brecq.synthesis.output import REPORT, save

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))
SETS = Path(__file__).resolve().parent / "out" / "data_free"

FAST = DistillConfig.preset("fast")
DISTILLED = {
    "fast": FAST,
    "full": DistillConfig.preset("full"),
    "half_coarse": FAST.replace(coarse=0.5),
    "generator": FAST.replace(name="generator", latent="generator", start="noise", lr=0.1, coarse=0.0, steps=500),
    "from_noise": FAST.replace(name="from noise", start="noise"),
    "zeroq": FAST.replace(name="zeroq", latent="pixels", start="noise", coarse=0.0, swing=False, shift=0, flip=False),
    "class": FAST.replace(name="class", target="class"),
    "entropy": FAST.replace(name="entropy", target="entropy"),
    "leaves": DistillConfig.preset("leaves"),
}
ROWS = {
    "real": "real images",
    "fast": "distilled: `fast`",
    "full": "distilled: `full`",
    "half_coarse": "distilled: `fast` with half of the steps coarse",
    "generator": "distilled: a generator, 500 steps (Genie)",
    "from_noise": "distilled: `fast` from noise",
    "zeroq": "distilled: pixels, from noise, without coarse steps, swing, shifts and flips (ZeroQ)",
    "class": "distilled: `fast` with a class for each image",
    "entropy": "distilled: `fast` with the entropy term",
    "leaves": "`leaves`: dead leaves, not distilled",
    "other": "out-of-domain images, resized",
    "crops": "crops of twelve photographs",
    "noise": "Gaussian noise of the right mean and variance",
}
MEASURES = {
    "top1": ("top-1 accuracy in percent", 1.0, 2),
    "agreement": ("agreement with float in percent", 1.0, 2),
    "sqnr": ("SQNR of the logits in dB", 1.0, 2),
    "statistics": ("mismatch of the batch norm statistics", 1.0, 3),
    "tail": ("99.99 % quantile of batch norm inputs, in stored deviations from the stored mean", 1.0, 2),
    "seconds_to_distill": ("seconds to distill", 1.0, 0),
}


@dataclass(frozen=True)
class Task:
    """How much is measured on a network, and whether it has batch norms, without which only `leaves` are made."""

    calibration: int
    samples: int
    steps: int
    batch_size: int
    has_batch_norm: bool = True


TASKS = {
    "resnet20": Task(256, CIFAR_TEST, 100, 32),
    "efficientnet_lite0": Task(64, 800, 40, 16),
    "squeezenet1_1": Task(64, 800, 40, 16, has_batch_norm=False),
}


@dataclass(frozen=True)
class DataCell(Cell):
    """A cell that is also identified by where its calibration data came from; without a configuration it is about
    that data itself."""

    source: str = "real"

    def key(self) -> dict[str, Any]:
        config = DISTILLED[self.source].to_dict() if self.source in DISTILLED else None
        return {**super().key(), "calibration": self.calibration, "source": self.source, "distill": config}


def main() -> None:
    options = arguments()
    use_threads(options.threads)
    run_and_print(options, list_cells(options), measure_cell, MEASURES)


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "data_free.jsonl")
    found.add_argument("--networks", nargs="+", choices=TASKS, default=list(TASKS))
    found.add_argument("--settings", nargs="+", default=["W4A4", "W2A4"], metavar="WxAy")
    found.add_argument("--sources", nargs="+", choices=ROWS, default=list(ROWS), help="of the calibration data")
    found.add_argument("--calibration", type=int, metavar="N", help="calibration images")
    found.add_argument("--blocks-alone", action="store_true", help="both with end-to-end tuning and without")
    return found.parse_args()


def list_cells(options: argparse.Namespace) -> list[Cell]:
    cells: list[Cell] = []
    for name in options.networks:
        task = TASKS[name]
        count = options.calibration or task.calibration
        recipe = with_steps(Recipe.preset("fast"), options.steps or task.steps).replace(batch_size=task.batch_size)
        cells.append(Cell(name, "float", "", count, task.samples))
        for source in options.sources:
            if task.has_batch_norm:
                cells.append(DataCell(name, ROWS[source], "", count, task.samples, None, source=source))
            elif source in DISTILLED and DISTILLED[source].steps:
                continue  # there is nothing to distill from
            for setting in options.settings:
                for seed in options.seeds:
                    # the default was another one when most of these were measured; among themselves they compare
                    config = QuantConfig(*bits(setting), first_last_outputs=False, recipe=recipe, seed=seed)
                    cells.append(DataCell(name, ROWS[source], setting, count, task.samples, config, source=source))
                    if options.blocks_alone:
                        alone = replace(config, recipe=recipe.replace(tuning=0.0))
                        row = f"{ROWS[source]}, without tuning"
                        cells.append(DataCell(name, row, setting, count, task.samples, alone, source=source))
    return cells


def measure_cell(cell: Cell) -> Values:
    model = network(cell.network).model
    if not isinstance(cell, DataCell):
        return quality(cell.network, model, cell.samples)
    inputs, cost = calibration(cell.network, cell.source, cell.calibration)
    if cell.config is None:
        return {**cost, **describe(model, inputs)}
    result = brecq.quantize(model, inputs, cell.config)
    return {"seconds": result.report.seconds, **quality(cell.network, result.model, cell.samples)}


@torch.no_grad()
def describe(model: nn.Module, inputs: Tensor, batch_size: int = 32) -> Values:
    """How far from the stored statistics inputs are, and how long their tails: means over the batch norms."""
    norms = find_batch_norms(model)
    errors = [mean**2 + std**2 for mean, std in measure_match(model, norms, inputs, batch_size)]
    tails: list[float] = []
    with watch_inputs(norms) as seen:
        for batch in inputs.split(batch_size):
            seen.clear()
            model(batch)
            for name, x in seen:
                mean, variance = (value.view(-1, 1, 1) for value in stored_moments(norms[name]))
                values = ((x - mean) / (variance + 1e-5).sqrt()).abs().flatten()
                tails.append(float(values.kthvalue(math.ceil(0.9999 * len(values))).values))
    return {"statistics": math.sqrt(sum(errors) / len(errors)), "tail": sum(tails) / len(tails)}


def calibration(name: str, source: str, count: int) -> tuple[Tensor, Values]:
    """`count` inputs for the network `name`, and what making them took."""
    preprocessing = network(name).preprocessing
    assert preprocessing is not None
    if source in DISTILLED:
        return distilled(name, DISTILLED[source], count, preprocessing)
    if source == "real":
        return calibration_data(name, count).inputs[0], {}
    if source == "other":
        return out_of_domain(name, count, preprocessing).inputs[0], {}
    if source == "crops":
        from demo import CALIBRATION_PHOTOS, photos

        return random_crops(photos(CALIBRATION_PHOTOS), count, preprocessing, seed=0), {}
    spec = input_spec(network(name).model, preprocessing, None)
    return spec.noise(count, torch.Generator().manual_seed(0)), {}


def out_of_domain(name: str, count: int, preprocessing: Preprocessing) -> Dataset:
    """CIFAR images for an ImageNet network and the other way round, resized."""
    if name in IMAGENET:
        return load_data(f"{require(DATA / 'cifar10.npz')}:x_train", preprocessing.replace(resize=None), count, 0)
    return load_data(require(DATA / "imagenet_calib"), preprocessing.replace(resize=min(preprocessing.size)), count, 0)


def distilled(name: str, config: DistillConfig, count: int, preprocessing: Preprocessing) -> tuple[Tensor, Values]:
    """A distilled set, made unless it is there; an interrupted one is continued."""
    model = network(name).model
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
    folder = SETS / f"{name}-{config.name}-{count}-{digest}"
    if not (folder / REPORT).exists():
        progress = PlainProgress(Console(stderr=True))
        made = synthesize(
            model,
            count,
            config,
            preprocessing=preprocessing,
            run_dir=folder,
            resume=has_run(folder),
            progress=progress,
        )
        save(folder, made, preprocessing)
        made.forget_batches()
    report = json.loads((folder / REPORT).read_text())
    return load_data(folder, preprocessing, None, 0).inputs[0], {"seconds_to_distill": report["seconds"]}


if __name__ == "__main__":
    main()
