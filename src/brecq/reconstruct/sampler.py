"""Which calibration samples are learned from, in which order, and which are only measured on."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_HELD_OUT = 128

NONE = torch.empty(0, dtype=torch.int64)
"""Indices of no samples: all are learned from."""


def hold_out(samples: int, share: float, seed: int) -> Tensor:
    """Indices of samples that nothing is learned from, so that errors measured on them are those of new inputs.

    A share of the samples: at least one unless it is 0 or there is no other, at most 128. int64, sorted, on the CPU.
    """
    count = min(round(share * samples) or 1, samples - 1, MOST_HELD_OUT) if share else 0
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))[:count].sort().values


class Sampler:
    """Random batches without replacement: every sample once before any comes again.

    Each is a tensor of `batch` indices, int64, on the CPU, or of all of them if there are fewer. None is in `held`.
    """

    def __init__(self, samples: int, batch: int, generator: torch.Generator, held: Tensor = NONE) -> None:
        self.indices = learned_from(samples, held)
        self.batch, self.generator = min(batch, len(self.indices)), generator
        self.order = torch.empty(0, dtype=torch.int64)

    def __next__(self) -> Tensor:
        if len(self.order) < self.batch:
            shuffled = self.indices[torch.randperm(len(self.indices), generator=self.generator)]
            self.order = torch.cat([self.order, shuffled])
        index, self.order = self.order[: self.batch], self.order[self.batch :]
        return index


def learned_from(samples: int, held: Tensor) -> Tensor:
    """Indices of the samples that are not held out, int64, sorted, on the CPU."""
    free = torch.ones(samples, dtype=torch.bool)
    free[held] = False
    return free.nonzero().flatten()


def measured_on(samples: int, held: Tensor, seed: int) -> Tensor:
    """Indices of the samples that errors are measured on: those held out, or a random 128 where none are."""
    if len(held):
        return held
    chosen = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    return chosen[: min(MOST_HELD_OUT, samples)].sort().values
