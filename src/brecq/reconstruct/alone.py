"""What each quantizer costs at the chosen bits with weights rounded to nearest, and which ones are to be raised."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from brecq import ranks
from brecq.config import FLOAT, LayerRule, QuantConfig
from brecq.partition.blocks import Network
from brecq.placement.losses import tensor_losses
from brecq.reconstruct import passes
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.run import Run
from brecq.report import TensorLoss

RANGES, SAMPLES = 32, 8
"""Samples that ranges are taken from, and that losses are measured on."""

_NUMBERS = 8 * 3 * 256 * 256
"""Of all samples that losses are measured on, or two samples: the activations of all layers are kept."""

LIMIT = 0.01
"""Noise over signal of an output, by one tensor alone, from which on it loses too much: an SQNR of 20 dB."""

OUTLIER = 8.0
"""So many times the median of its kind it has to be, too: where all lose much, no single one is at fault."""


def losses(network: Network, inputs: Sequence[Tensor], config: QuantConfig, device: torch.device) -> list[TensorLoss]:
    """Round to nearest on a few samples, and measure each quantizer of the network alone; the worst come first.

    Args:
        network: its graph on `device`. inputs: each [N, ...].
    """
    few = tuple(value[:RANGES] for value in inputs)
    cache = ActivationCache(device, config.memory_budget, None, exact=True)
    run = Run(network, few, config.replace(method="rtn"), cache)
    with ranks.alone(), run.working():
        passes.run(run)
    numbers = sum(value[0].numel() for value in few)
    samples = max(2, min(SAMPLES, _NUMBERS // max(numbers, 1)))
    return tensor_losses(network.graph, [value[:samples].to(device) for value in few])


def outliers(found: Sequence[TensorLoss]) -> list[TensorLoss]:
    """Those that lose too much, and far more than others of their kind."""
    usual = {
        kind: statistics.median(each.worst for each in found if each.kind == kind)
        for kind in {each.kind for each in found}
    }
    return [each for each in found if each.worst > max(LIMIT, OUTLIER * usual[each.kind])]


def raised(found: Sequence[TensorLoss]) -> list[LayerRule]:
    """Rules that give the outliers more bits: 8, or floating point where they have 8 already.

    The width of an activation is that of the layers that read it; one that no layer reads cannot be raised by a rule.
    """
    rules = []
    for each in outliers(found):
        bits = 8 if each.bits < 8 else FLOAT
        changes = {"weights" if each.kind == "weight" else "activations": bits}
        rules += [LayerRule(escaped(layer), **changes) for layer in each.layers]
    return rules


def remedy(each: TensorLoss) -> str:
    """What to do about a tensor, as an option."""
    if not each.layers:
        return "no layer reads it alone: leave more in float with --placement input"
    bits = "8" if each.bits < 8 else "32"
    key = "w" if each.kind == "weight" else "a"
    more = f" (and {len(each.layers) - 1} more)" if len(each.layers) > 1 else ""
    return f"--set '{escaped(each.layers[0])}' {key}={bits}{more}"


def escaped(layer: str) -> str:
    """The layer's name as a pattern that matches it alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in layer)
