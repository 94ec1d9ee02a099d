"""What to reconstruct as one: layer, block, stage or the whole net, at W2A32 (Table 1 of the paper).

    python benchmarks/granularity.py
    python benchmarks/granularity.py --networks resnet20 --seeds 0 1 2
    python benchmarks/granularity.py --networks efficientnet_lite0 --steps 100 --batch-size 16

ResNet-20 on CIFAR-10, and EfficientNet-lite0 on ImageNet, a network of inverted residuals, with fewer calibration
images. Every unit gets the same number of steps, so all granularities compute about the same. Finished cells are kept
in benchmarks/results/granularity.jsonl and not measured again.
"""

from __future__ import annotations

import argparse
from typing import get_args

from cells import Cell, bits, describe_steps, parser, run_and_print, with_steps
from common import CIFAR, CIFAR_CALIBRATION, CIFAR_TEST, IMAGENET, IMAGENET_TEST, measure, use_threads

from brecq import QuantConfig, Recipe
from brecq.config import Granularity

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
MEASURES = {
    "top1": ("top-1 accuracy in percent", 1.0, 2),
    "sqnr": ("SQNR of the logits in dB", 1.0, 1),
    "seconds": ("seconds to quantize", 1.0, 0),
    "cpu_seconds": ("processor seconds to quantize", 1.0, 0),
}


def main() -> None:
    options = arguments()
    use_threads(options.threads)
    run_and_print(options, list_cells(options), measure, MEASURES)


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "granularity.jsonl")
    found.add_argument(
        "--networks", nargs="+", choices=(*CIFAR, *IMAGENET), default=("resnet20", "efficientnet_lite0")
    )
    found.add_argument("--settings", nargs="+", default=["W2A32"], metavar="WxAy")
    found.add_argument("--recipe", choices=("fast", "paper", "official", "thorough"), default="fast")
    found.add_argument("--batch-size", type=int, metavar="N", help="in place of the recipe's: `net` needs memory")
    found.add_argument("--calibration", type=int, default=256, metavar="N", help="ImageNet calibration images")
    found.add_argument("--samples", type=int, default=IMAGENET_TEST, metavar="N", help="ImageNet test images")
    return found.parse_args()


def list_cells(options: argparse.Namespace) -> list[Cell]:
    recipe = with_steps(Recipe.preset(options.recipe), options.steps)
    if options.batch_size is not None:
        recipe = recipe.replace(batch_size=options.batch_size)
    cells = []
    for network in options.networks:
        sizes: tuple[int, int] = (options.calibration, options.samples)
        if network in CIFAR:
            sizes = (CIFAR_CALIBRATION, CIFAR_TEST)
        cells.append(Cell(network, "float", "", *sizes))
        for setting in options.settings:
            weights, activations = bits(setting)
            nearest = QuantConfig(weights, activations, method="rtn", seed=options.seeds[0])
            cells.append(Cell(network, f"{setting}, rounding to nearest", "", *sizes, nearest))
            row = f"{setting}, {options.recipe} ({describe_steps(recipe)}, batch {recipe.batch_size})"
            for granularity in GRANULARITIES:
                for seed in options.seeds:
                    config = QuantConfig(weights, activations, granularity=granularity, recipe=recipe, seed=seed)
                    cells.append(Cell(network, row, granularity, *sizes, config))
    return cells


if __name__ == "__main__":
    main()
