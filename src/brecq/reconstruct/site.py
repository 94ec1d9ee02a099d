"""A block at work: what initializing and learning it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from brecq.config import Recipe
from brecq.partition.blocks import Block
from brecq.reconstruct.learnables import Learnables
from brecq.reconstruct.sampler import NONE
from brecq.reconstruct.streams import Streams

Stage = Literal["joint", "weights", "activations", "rtn"]
"""What a pass over the blocks learns: everything, the rounding of weights, step sizes of activations, or nothing."""


@dataclass(frozen=True)
class Site:
    """One block, with everything before it finished.

    Attributes:
        mine: its fake-quantizers, without those of earlier blocks.
        streams: float inputs and outputs of the block and its quantized inputs, for all samples; the cache is in it.
        held: indices of the samples that nothing is learned from.
    """

    block: Block
    mine: Learnables
    streams: Streams
    recipe: Recipe
    held: Tensor = NONE
