"""What distillation starts from, and all that pictures which are only drawn consist of."""

from __future__ import annotations

import torch
from torch import Tensor

from brecq.synthesis.config import DistillConfig
from brecq.synthesis.inputs import InputSpec
from brecq.synthesis.leaves import dead_leaves
from brecq.synthesis.spectrum import pink


def start_inputs(spec: InputSpec, count: int, config: DistillConfig, generator: torch.Generator) -> Tensor:
    """A batch [count, C, ...] in the valid range: dead leaves or, on request and where it is no pictures, noise."""
    if spec.is_picture and config.start == "leaves":
        height, width = spec.shape[1:]
        standardized = dead_leaves(count, height, width, int(torch.randint(2**31, (), generator=generator)))
    else:
        standardized = torch.randn(count, *spec.shape, generator=generator)
        if config.latent == "spectrum" and len(spec.shape) > 1:
            standardized = pink(standardized)
    return spec.clip(spec.restore(standardized))
