"""Accuracy, time and memory on ImageNet networks; first and last layer at 8 bits.

    python benchmarks/imagenet.py
    python benchmarks/imagenet.py --networks efficientnet_lite0 --settings W4A4 --calibration 256 --steps 100
    python benchmarks/imagenet.py --table

Tested on 800 validation images that are easier than the full set: compare with the float row, not with papers. Every
cell runs in a process of its own, whose peak memory is the largest resident set until the network is quantized.
Finished cells are kept in benchmarks/results/imagenet.jsonl and not measured again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from cells import Cell, Values, bits, describe_steps, parser, run_and_print, with_steps
from common import IMAGENET, IMAGENET_TEST, measure, quality, quantized, use_threads

from brecq import QuantConfig, Recipe

SETTINGS = ("W8A8", "W4A32", "W4A8", "W4A4", "W2A8")
RECIPES = ("rtn", "fast", "thorough")
MEASURES = {
    "top1": ("top-1 accuracy in percent", 1.0, 2),
    "agreement": ("agreement with float in percent", 1.0, 2),
    "seconds": ("seconds to quantize", 1.0, 0),
    "cpu_seconds": ("processor seconds to quantize", 1.0, 0),
    "peak_bytes": ("peak memory in GB", 1e-9, 2),
}


def main() -> None:
    options = arguments()
    use_threads(options.threads)
    run_and_print(options, list_cells(options), partial(measure_apart, threads=options.threads), MEASURES)


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "imagenet.jsonl")
    found.add_argument("--networks", nargs="+", choices=IMAGENET, default=IMAGENET)
    found.add_argument("--settings", nargs="+", default=SETTINGS, metavar="WxAy", help=f"of {' '.join(SETTINGS)} ...")
    found.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES[:2])
    found.add_argument("--calibration", type=int, default=512, metavar="N", help="calibration images, at most 1000")
    found.add_argument("--samples", type=int, default=IMAGENET_TEST, metavar="N", help="test images, at most 800")
    return found.parse_args()


def list_cells(options: argparse.Namespace) -> list[Cell]:
    cells = []
    for network in options.networks:
        cells.append(Cell(network, "float", "", options.calibration, options.samples))
        for recipe in options.recipes:
            for setting in options.settings:
                for seed in options.seeds[:1] if recipe == "rtn" else options.seeds:
                    row, config = configure(recipe, setting, seed, options.steps)
                    cells.append(Cell(network, row, setting, options.calibration, options.samples, config))
    return cells


def configure(name: str, setting: str, seed: int, steps: int | None) -> tuple[str, QuantConfig]:
    """The row's name, and the configuration."""
    weights, activations = bits(setting)
    if name == "rtn":
        return "rounding to nearest", QuantConfig(weights, activations, method="rtn", seed=seed)
    recipe = with_steps(Recipe.preset(name), steps)
    return f"{name} ({describe_steps(recipe)})", QuantConfig(weights, activations, recipe=recipe, seed=seed)


def measure_apart(cell: Cell, threads: int | None) -> Values:
    """Measure in a fresh process: a peak is never taken back."""
    # spawned, not forked; the parent holds no data, as Linux counts its memory into the child's peak
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_here, cell, threads).result()


def measure_here(cell: Cell, threads: int | None) -> Values:
    use_threads(threads)
    if cell.config is None:
        return measure(cell)
    result, cost = quantized(cell.network, cell.calibration, cell.config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return {**cost, "peak_bytes": peak * unit, **quality(cell.network, result.model, cell.samples)}


if __name__ == "__main__":
    main()
