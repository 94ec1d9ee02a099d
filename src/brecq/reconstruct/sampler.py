"""Which calibration samples are learned from, in which order, and which are only measured on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from brecq.config import QuantConfig
from brecq.quant.kernels import Rows
from brecq.ranks import Part

MOST_HELD_OUT = 128

NONE = torch.empty(0, dtype=torch.int64)
"""Indices of no samples: all are learned from."""


def used(config: QuantConfig) -> int | None:
    """The most calibration samples that a run takes anything from; `None`: all. Without gradient steps these are
    those that ranges and moments are taken from, and those that are held out beside them."""
    if config.method != "reconstruct" or config.learns:
        return None
    return math.ceil(config.recipe.range_samples / (1 - config.recipe.held_out))


def hold_out(samples: int, share: float, seed: int) -> Tensor:
    """Indices of samples that nothing is learned from, so that errors measured on them are those of new inputs.

    A share of the samples: at least one unless it is 0 or there is no other, at most 128; one from each of as many
    slices of the data. int64, sorted, on the CPU.
    """
    count = min(round(share * samples) or 1, samples - 1, MOST_HELD_OUT) if share else 0
    return _one_of_each(samples, count, torch.Generator().manual_seed(seed))


class Sampler:
    """Random batches without replacement: every sample once before any comes again.

    Each is a tensor of `batch` indices, int64, sorted, on the CPU, or of all of them if there are fewer. None is in
    `held`. A batch has one sample from each of `batch` slices of the data, as far as these are equally long: processes
    that share the data have equal parts of every batch.
    """

    def __init__(self, samples: int, batch: int, generator: torch.Generator, held: Tensor = NONE) -> None:
        self.indices = learned_from(samples, held)
        self.batch, self.generator = min(batch, len(self.indices)), generator
        self.order = torch.empty(0, dtype=torch.int64)

    def __next__(self) -> Tensor:
        if len(self.order) < self.batch:
            self.order = torch.cat([self.order, self.indices[self._shuffled()]])
        index, self.order = self.order[: self.batch], self.order[self.batch :]
        return index.sort().values

    def _shuffled(self) -> Tensor:
        """All places in `indices`: slice by slice in random order, then the first of every slice, the second, ..."""
        edges = _edges(len(self.indices), self.batch)
        sizes = edges.diff()
        within = torch.cat([torch.randperm(size, generator=self.generator) for size in sizes.tolist()])
        turn = (torch.cat([torch.arange(size) for size in sizes.tolist()]) + 0.5) / sizes.repeat_interleave(sizes)
        return (within + edges[:-1].repeat_interleave(sizes))[turn.argsort(stable=True)]


def learned_from(samples: int, held: Tensor) -> Tensor:
    """Indices of the samples that are not held out, int64, sorted, on the CPU."""
    free = torch.ones(samples, dtype=torch.bool)
    free[held] = False
    return free.nonzero().flatten()


def measured_on(samples: int, held: Tensor, seed: int) -> Tensor:
    """Indices of the samples that errors are measured on: those held out, or a random 128 where none are."""
    if len(held):
        return held
    return _one_of_each(samples, min(MOST_HELD_OUT, samples), torch.Generator().manual_seed(seed))


def rows_of(part: Part) -> Rows:
    """What a part of a batch is to the kernels."""
    return Rows(part.before, len(part.places), part.total)


def _one_of_each(samples: int, slices: int, generator: torch.Generator) -> Tensor:
    """A random sample from each of so many slices of the data, int64, sorted."""
    edges = _edges(samples, slices)
    draws = torch.rand(slices, generator=generator, dtype=torch.float64)
    return edges[:-1] + (draws * edges.diff()).long()


def _edges(samples: int, slices: int) -> Tensor:
    """Where slices of nearly equal length begin and end, int64 [slices + 1]."""
    return torch.arange(slices + 1) * samples // max(slices, 1)
