"""Random batches of calibration samples."""

from __future__ import annotations

import torch
from torch import Tensor


class Sampler:
    """Random batches without replacement: every sample once before any comes again.

    Each is a tensor of `batch` indices, int64, on the CPU.
    """

    def __init__(self, samples: int, batch: int, generator: torch.Generator) -> None:
        self.samples, self.batch, self.generator = samples, batch, generator
        self.order = torch.empty(0, dtype=torch.int64)

    def __next__(self) -> Tensor:
        if len(self.order) < self.batch:
            self.order = torch.cat([self.order, torch.randperm(self.samples, generator=self.generator)])
        index, self.order = self.order[: self.batch], self.order[self.batch :]
        return index
