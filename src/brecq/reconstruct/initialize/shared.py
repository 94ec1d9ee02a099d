"""Activations that blocks apart make and a concatenation joins: their range fits all, from the float network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from brecq.config import Recipe
from brecq.partition.blocks import Network
from brecq.quant.fake_quant import ActivationFakeQuantize
from brecq.ranks import Share
from brecq.reconstruct.initialize.activations import ranges_of_run
from brecq.reconstruct.streams import run_batches


def shared_quantizers(network: Network) -> list[ActivationFakeQuantize]:
    """Those that several blocks use: no single block may decide on them."""
    users: Counter[ActivationFakeQuantize] = Counter()
    for block in network.blocks:
        found = [m for m in block.module.modules() if isinstance(m, ActivationFakeQuantize)]
        users.update(module for module in found if module.enabled and not module.fixed)
    return [module for module, blocks in users.items() if blocks > 1]


def shared_ranges(
    shared: Sequence[ActivationFakeQuantize],
    network: Network,
    inputs: Sequence[Tensor],
    share: Share,
    recipe: Recipe,
    device: torch.device,
) -> None:
    """Set the grids of `shared` for all their tensors together; tuning learns them. `inputs`: those of the share."""

    def run(rows: slice) -> None:
        run_batches(network, [value[rows] for value in inputs], device)

    ranges_of_run(shared, network.graph, share, recipe, run)
