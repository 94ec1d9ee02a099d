"""Does the predicted loss rank allocations as the network does? Predictions against measurements.

    python benchmarks/additivity.py
    python benchmarks/additivity.py --networks efficientnet_lite0 --calibration 128 --samples 200 --qualities fast

A sensitivity table is measured, random allocations of bits are drawn, and the whole network is run with each of them
(weights rounded to nearest, or with the codes that the table learned; nothing is learned afterwards). Shown is
Spearman's rank correlation between the predicted loss and

    KL    the Kullback-Leibler divergence from the float network's predictions, in nats
    loss  the cross-entropy with the labels

for each metric, without cross terms, with those of the lowest bits, and with all. `logits` measures each knob alone
in the whole network (KL at the logits): its cost is quadratic in the number of blocks, it is here for comparison. Then
the size of the cross terms is shown: the mean of |cross| / (sum of the two single terms), by pair of bits.
Printed only.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from cells import environment
from common import CIFAR, IMAGENET, calibration_data, network, test_data, use_threads
from scipy.stats import spearmanr
from torch import Tensor

from brecq import QuantConfig, Recipe
from brecq.capture.export import capture
from brecq.partition.blocks import extract
from brecq.partition.cut import partition
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.precision.layers import dissect
from brecq.precision.measure import measure_sensitivity
from brecq.precision.meter import BlockMeter
from brecq.precision.options import Cross
from brecq.precision.problem import build
from brecq.precision.table import METRICS, SensitivityTable
from brecq.quant.fake_quant import WeightFakeQuantize
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.streams import Streams

BATCH = 50


def main() -> None:
    options = arguments()
    use_threads(options.threads)
    print(f"{environment()}\n")
    for name in options.networks:
        for quality in options.qualities:
            report(name, quality, options)


def arguments() -> argparse.Namespace:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--networks", nargs="+", choices=CIFAR + IMAGENET, default=CIFAR[:1])
    found.add_argument("--qualities", nargs="+", choices=("fast", "reconstructed"), default=("fast", "reconstructed"))
    found.add_argument("--bits", type=int, nargs="+", default=(2, 3, 4, 8), metavar="N")
    found.add_argument("--allocations", type=int, default=60, metavar="N", help="random allocations")
    found.add_argument("--calibration", type=int, default=512, metavar="N", help="images for the table")
    found.add_argument("--samples", type=int, default=1000, metavar="N", help="test images")
    found.add_argument("--steps", type=int, default=60, metavar="N", help="steps per block and width, reconstructed")
    found.add_argument("--draws", type=int, default=1, metavar="N", help="Fisher vectors a sample")
    found.add_argument("--threads", type=int, metavar="N", help="threads to compute on (default: PyTorch's)")
    found.add_argument("--seed", type=int, default=0)
    return found.parse_args()


def report(name: str, quality: str, options: argparse.Namespace) -> None:
    config = QuantConfig(recipe=Recipe.preset("fast").replace(steps=options.steps), seed=options.seed)
    data = calibration_data(name, options.calibration)
    model = network(name).model
    table = measure_sensitivity(
        model, data, config, bits=options.bits, quality=quality, cross="all", draws=options.draws
    )  # type: ignore[arg-type]
    blocks = len({term.block for term in table.terms})
    print(
        f"**{name}**, {quality}: {len(table.terms)} terms of {blocks} blocks, {table.block_forwards} block-forwards "
        f"over {table.samples} images, {table.seconds:.0f} s\n"
    )
    whole = Whole(name, table, options.samples, config)
    generator = np.random.default_rng(options.seed)
    free = [knob for knob in table.knobs if knob.free]
    drawn = []
    for _ in range(options.allocations):
        shares = generator.dirichlet(np.ones(len(options.bits)))  # some narrow, some wide on average
        drawn.append({knob.name: knob.bits[generator.choice(len(knob.bits), p=shares)] for knob in free})
    measured = np.array([whole.measure(bits) for bits in drawn])
    alone = {(k.name, b): whole.measure({k.name: b})[0] for k in free for b in k.bits}

    print("| metric | cross terms | rank correlation, KL | rank correlation, loss | median predicted / measured KL |")
    print("|---|---|---:|---:|---:|")
    for metric, cross in itertools.product(METRICS, ("none", "lowest", "all")):
        predicted = predict(restricted(table, cross), metric, drawn)  # type: ignore[arg-type]
        row(metric, cross, predicted, measured)
    row("logits", "none", [sum(alone[item] for item in bits.items()) for bits in drawn], measured)

    print("\n| bits | mean cross / single, fisher | mean of absolute values |")
    print("|---|---:|---:|")
    single = table.diagonal("fisher")
    ratios = defaultdict(list)
    for first, second, value in table.crosses("fisher"):
        ratios[tuple(sorted((first[1], second[1])))].append(value / (single[first] + single[second]))
    for pair, values in sorted(ratios.items()):
        print(f"| {pair[0]}, {pair[1]} | {np.mean(values):+.3f} | {np.mean(np.abs(values)):.3f} |")
    print(flush=True)


def row(metric: str, cross: str, predicted: Iterable[float], measured: np.ndarray) -> None:
    found = np.array(list(predicted))
    kl, loss = (spearmanr(found, measured[:, i]).statistic for i in (0, 1))
    ratio = f"{np.median(found / measured[:, 0]):.2f}" if metric != "relative" else ""
    print(f"| {metric} | {cross} | {kl:.3f} | {loss:.3f} | {ratio} |")


def restricted(table: SensitivityTable, cross: Cross) -> SensitivityTable:
    """The table with fewer pairs."""
    from dataclasses import replace

    lowest = {knob.name: knob.bits[0] for knob in table.knobs}

    def kept(bits: dict[str, int]) -> bool:
        return (
            len(bits) == 1
            or cross == "all"
            or (cross == "lowest" and all(lowest[name] == width for name, width in bits.items()))
        )

    return replace(table, terms=tuple(term for term in table.terms if kept(dict(term.bits))))


def predict(table: SensitivityTable, metric: str, drawn: list[dict[str, int]]) -> np.ndarray:
    problem = build(table, [], None, metric)  # type: ignore[arg-type]
    choices = [[knob.bits.index(bits.get(knob.name, knob.bits[-1])) for knob in problem.knobs] for bits in drawn]
    return problem.loss(np.array(choices))


class Whole:
    """The network as one block, run with any bits."""

    def __init__(self, name: str, table: SensitivityTable, samples: int, config: QuantConfig) -> None:
        data = test_data(name, samples)
        quantizer = BrecqQuantizer(config)
        prepared = prepare(capture(network(name).model, tuple(x[:2] for x in data.inputs)), quantizer)
        specs = partition(prepared, "net")
        assert quantizer.placement is not None
        anatomy = dissect(prepared, specs, quantizer.placement, sorted({b for k in table.knobs for b in k.bits}), None)
        for module in prepared.modules():
            if hasattr(module, "enabled"):
                module.enabled = False
        net = extract(prepared, specs)
        self.block = net.blocks[0]
        streams = Streams(net, data.inputs, ActivationCache(torch.device("cpu")), quantized="float")
        self.meter = BlockMeter(self.block, anatomy, streams, config, 1, set())
        for key, codes in table.codes.items():
            knob, _, bits = key.rpartition("@")
            variant = self.meter.variants[knob, int(bits)]
            assert isinstance(variant, WeightFakeQuantize)
            variant.codes = codes
        self.inputs, self.labels = data.inputs, data.labels
        self.reference = self.logits({})

    @torch.no_grad()
    def logits(self, bits: dict[str, int]) -> Tensor:
        with self.meter.quantized(bits):
            parts = zip(*(x.split(BATCH) for x in self.inputs), strict=True)
            return torch.cat([self.block.module(*part)[0] for part in parts])

    def measure(self, bits: dict[str, int]) -> tuple[float, float]:
        """KL divergence from the float network, and cross-entropy with the labels; nats per image."""
        logits = self.logits(bits)
        kl = F.kl_div(logits.log_softmax(1), self.reference.log_softmax(1), log_target=True, reduction="batchmean")
        assert self.labels is not None
        return kl.item(), F.cross_entropy(logits, self.labels).item()


if __name__ == "__main__":
    main()
