"""Activations: scale and zero point with the smallest Lp error of what passes while the network computes in float."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import nn

from brecq import ranks
from brecq.config import Recipe
from brecq.quant.fake_quant import ActivationFakeQuantize, Mode, set_mode
from brecq.ranks import Share
from brecq.reconstruct.site import Site


def activation_ranges(site: Site) -> None:
    """Set the grids of the block's activations, from the block run in float on its quantized inputs."""
    waiting = [module for module in site.mine.activations.values() if not module.initialized]
    if waiting:
        streams, block = site.streams, site.block

        def run(rows: slice) -> None:
            for part in streams.slices(block, rows):
                block.module(*streams.read("quantized", block.inputs, part))

        ranges_of_run(waiting, block.module, streams.share, site.recipe, run)


@torch.no_grad()
def ranges_of_run(
    waiting: Collection[ActivationFakeQuantize],
    module: nn.Module,
    share: Share,
    recipe: Recipe,
    run: Callable[[slice], object],
) -> None:
    """Set the grids of `waiting`, fake-quantizers in `module`, from what passes them when it runs on some samples of
    every process's `share`. `run(rows)` runs it. Leaves float mode."""
    set_mode(module, Mode.FLOAT)
    for quantizer in waiting:
        quantizer.mode = Mode.OBSERVE
    for unit in share.units(recipe.range_samples):
        for quantizer in waiting:
            samples = range(share.start + unit.rows.start, share.start + unit.rows.stop)
            quantizer.observer.begin(unit.number, samples)
        run(unit.rows)
    set_mode(module, Mode.FLOAT)
    for seen in ranks.current().gather([quantizer.observer for quantizer in waiting]):
        for quantizer, observer in zip(waiting, seen, strict=True):
            quantizer.observer.absorb([observer])
    for quantizer in waiting:
        quantizer.initialize(recipe.range_norm, recipe.range_candidates)
