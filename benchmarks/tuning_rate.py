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

    def _trusted(self, first: tune.Errors, state: dict[str, Tensor]) -> dict[str, float]:
        rates = super()._trusted(first, state)
        limits = {"steps": (self.recipe.tune_lr, tune.TRUST), "codes": (self.recipe.tune_codes_lr, tune.TRUST_CODES)}
        for kind, rate in rates.items():
            full, trust = limits[kind]
            added = f"at most {trust:g}" if rate == full else f"{trust * (full / rate) ** 2:.2f}"
            print(f"| {self.label} | {kind} | {self._of_outputs(first):.4f} | {added} | {rate:.4f} |", flush=True)
        return rates


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
    recipe = with_steps(Recipe.preset("fast"), options.steps).replace(tuning=0.02, tune_codes_lr=0.03)
    share = f"share that random steps of {recipe.tune_lr:g} add, {recipe.tune_codes_lr:g} of codes"
    print(f"| | | error | {share} | rate chosen |\n|---|---|---:|---:|---:|")
    for name in options.networks:
        data: Tensor = calibration_data(name, options.calibration).inputs[0]
        for setting in options.settings:
            Watched.label = f"{name} {setting}"
            brecq.quantize(network(name).model, data, QuantConfig(*bits(setting), recipe=recipe))


if __name__ == "__main__":
    main()
