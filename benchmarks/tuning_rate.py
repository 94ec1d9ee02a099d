"""How much a step of the end-to-end tuning can harm: the error that steps of random signs add, and the rate chosen.

    python benchmarks/tuning_rate.py --threads 1
    python benchmarks/tuning_rate.py --threads 1 --networks efficientnet_lite0 --settings W4A8 --calibration 128

Blocks are learned with a few steps first. Prints Markdown; nothing is kept.
"""

from __future__ import annotations

import argparse

from cells import bits, with_steps
from common import CIFAR, IMAGENET, calibration_data, network, use_threads
from torch import Tensor

import brecq
import brecq.reconstruct.passes
from brecq import QuantConfig, Recipe
from brecq.reconstruct import tune


class Watched(tune.Tuning):
    """Prints what the learning rate is chosen from."""

    label = ""

    def _trusted_rate(self, error: float, state: dict[str, Tensor]) -> float:
        rate = super()._trusted_rate(error, state)
        full = self.recipe.tune_lr
        added = f"at most {tune.TRUST:g}" if rate == full else f"{tune.TRUST * (full / rate) ** 2:.2f}"
        print(f"| {self.label} | {error:.4f} | {added} | {rate:.4f} |", flush=True)
        return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=(*CIFAR, *IMAGENET), default=["resnet20"])
    parser.add_argument("--settings", nargs="+", default=["W4A8", "W4A4", "W2A4", "W3A3", "W2A2"], metavar="WxAy")
    parser.add_argument("--calibration", type=int, default=256, metavar="N", help="calibration samples")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="steps a block")
    parser.add_argument("--threads", type=int, metavar="N")
    options = parser.parse_args()
    use_threads(options.threads)
    brecq.reconstruct.passes.Tuning = Watched  # type: ignore[misc]
    recipe = with_steps(Recipe.preset("fast"), options.steps).replace(tuning=0.02)
    print(f"| | error | share that a random step of {recipe.tune_lr:g} adds | rate chosen |\n|---|---:|---:|---:|")
    for name in options.networks:
        data: Tensor = calibration_data(name, options.calibration).inputs[0]
        for setting in options.settings:
            Watched.label = f"{name} {setting}"
            brecq.quantize(network(name).model, data, QuantConfig(*bits(setting), recipe=recipe))


if __name__ == "__main__":
    main()
