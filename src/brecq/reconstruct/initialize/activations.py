"""Activations: scale and zero point with the smallest Lp error of what passes while the network computes in float."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import nn

from brecq.config import Recipe
from brecq.forward import even_slices
from brecq.quant.fake_quant import ActivationFakeQuantize, Mode, set_mode
from brecq.reconstruct.site import Site


def activation_ranges(site: Site) -> None:
    """Set the grids of the block's activations, from the block run in float on its quantized inputs."""
    waiting = [module for module in site.mine.activations.values() if not module.initialized]

    def run() -> None:
        count = min(site.recipe.range_samples, site.streams.samples)
        for part in even_slices(count):
            site.block.module(*site.streams.read("quantized", site.block.inputs, part))

    if waiting:
        ranges_of_run(waiting, site.block.module, run, site.recipe)


@torch.no_grad()
def ranges_of_run(
    waiting: Collection[ActivationFakeQuantize], module: nn.Module, run: Callable[[], None], recipe: Recipe
) -> None:
    """Set the grids of `waiting`, fake-quantizers in `module`, from what passes them in `run`. Leaves float mode."""
    set_mode(module, Mode.FLOAT)
    for quantizer in waiting:
        quantizer.mode = Mode.OBSERVE
    run()
    set_mode(module, Mode.FLOAT)
    for quantizer in waiting:
        quantizer.initialize(recipe.range_norm, recipe.range_candidates, recipe.range_two_sided)
