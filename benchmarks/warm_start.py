"""What it is worth that reconstruction starts from the codes that the sensitivity table learned. ResNet-20, CIFAR-10.

    python benchmarks/warm_start.py --threads 1

A table of quality `reconstructed` is measured (it learns every block at every bit-width), the exact search picks the
bits for the budget, and the network is reconstructed with them from rounding to nearest (cold) and from the learned
codes (warm). Shown: top-1 accuracy and agreement with float in percent, SQNR of the logits in dB. Printed only.
"""

from __future__ import annotations

import argparse

from cells import environment
from common import CIFAR_TEST, calibration_data, network, quality, use_threads

import brecq
from brecq import QuantConfig, Recipe

NETWORK = "resnet20"


def main() -> None:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--budget", default="size=85KB")
    found.add_argument("--table-steps", type=int, default=60, metavar="N", help="steps per block and bit-width")
    found.add_argument("--steps", type=int, nargs="+", default=(10, 50, 100), metavar="N", help="steps per block")
    found.add_argument("--calibration", type=int, default=512, metavar="N", help="calibration images")
    found.add_argument("--samples", type=int, default=CIFAR_TEST, metavar="N", help="test images")
    found.add_argument("--threads", type=int, metavar="N", help="threads to compute on (default: PyTorch's)")
    found.add_argument("--seed", type=int, default=0)
    options = found.parse_args()
    use_threads(options.threads)

    def config(steps: int) -> QuantConfig:
        return QuantConfig(activations=8, recipe=Recipe.preset("fast").replace(steps=steps), seed=options.seed)

    model, data = network(NETWORK).model, calibration_data(NETWORK, options.calibration)
    table = brecq.measure_sensitivity(model, data, config(options.table_steps), quality="reconstructed")
    allocation = brecq.search(table, options.budget)
    bits = " ".join(str(layer.weights) for layer in allocation.layers.values())
    print(f"{environment()}\n\n{options.budget}, table in {table.seconds:.0f} s, bits {bits}\n")
    print("| steps a block | start | top-1 | agreement | SQNR | seconds |")
    print("|---|---|---:|---:|---:|---:|")
    for steps in options.steps:
        for start, codes in (("cold", None), ("warm", table.codes)):
            result = brecq.quantize(model, data, config(steps), allocation=allocation, learned=codes)
            values = quality(NETWORK, result.model, options.samples)
            shown = [f"{values['top1']:.2f}", f"{values['agreement']:.2f}", f"{values['sqnr']:.2f}"]
            print(f"| {steps} | {start} | {' | '.join(shown)} | {result.report.seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
