"""Accuracy of ResNet-20 and ResNet-32 on CIFAR-10 at 4 to 2 bits, with every recipe; first and last layer at 8 bits.

    python benchmarks/cifar.py
    python benchmarks/cifar.py --networks resnet20 --settings W2A4 W2A2 --recipes rtn fast --seeds 0 1 2
    python benchmarks/cifar.py --paper-steps 0.1     # the paper's 20000 + 5000 steps would take hours
    python benchmarks/cifar.py --table

Calibrated on the first 1024 training images, tested on 4000. Finished cells are kept in benchmarks/results/cifar.jsonl
and not measured again: an interrupted run continues where it was. `--table` shows the cells of the options given
beside it, so give it those of the run.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from cells import Cell, bits, describe_steps, parser, run_and_print, with_steps
from common import CIFAR, CIFAR_CALIBRATION, CIFAR_TEST, measure, use_threads

from brecq import QuantConfig, Recipe

SETTINGS = ("W4A32", "W3A32", "W2A32", "W4A4", "W2A4", "W3A3", "W2A2")
RECIPES = ("rtn", "fast", "paper", "official", "thorough")


def main() -> None:
    options = arguments()
    use_threads(options.threads)
    title = f"top-1 accuracy in percent, activations quantized at layers' {options.placement}s"
    measures = {
        "top1": (title, 1.0, 2),
        "seconds": ("seconds to quantize", 1.0, 0),
        "cpu_seconds": ("processor seconds to quantize", 1.0, 0),
    }
    run_and_print(options, list_cells(options), measure, measures)


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "cifar.jsonl")
    found.add_argument("--networks", nargs="+", choices=CIFAR, default=CIFAR)
    found.add_argument("--settings", nargs="+", default=SETTINGS, metavar="WxAy", help=f"of {' '.join(SETTINGS)} ...")
    found.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    found.add_argument(
        "--paper-steps", type=float, default=1.0, metavar="X", help="scale the steps of paper and official"
    )
    found.add_argument("--placement", choices=("output", "input"), default="output")
    return found.parse_args()


def list_cells(options: argparse.Namespace) -> list[Cell]:
    sizes = (CIFAR_CALIBRATION, CIFAR_TEST)
    cells = []
    for network in options.networks:
        cells.append(Cell(network, "float", "", *sizes))
        for recipe in options.recipes:
            for setting in options.settings:
                for seed in options.seeds[:1] if recipe == "rtn" else options.seeds:
                    row, config = configure(recipe, setting, seed, options)
                    cells.append(Cell(network, row, setting, *sizes, config))
    return cells


def configure(name: str, setting: str, seed: int, options: argparse.Namespace) -> tuple[str, QuantConfig]:
    """The row's name, and the configuration."""
    weights, activations = bits(setting)
    config = QuantConfig(weights, activations, placement=options.placement, seed=seed)
    if name == "rtn":
        return "rounding to nearest", replace(config, method="rtn")
    recipe = with_steps(
        Recipe.preset(name), options.steps, options.paper_steps if name in ("paper", "official") else 1.0
    )
    return f"{name} ({describe_steps(recipe)})", replace(config, recipe=recipe)


if __name__ == "__main__":
    main()
