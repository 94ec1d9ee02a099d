"""What is remembered of an activation until its range is chosen: its extremes and a bounded number of its values.

Values in the middle are like one another, and some drawn at random stand for all. The few at the ends are not: what it
costs to clip them decides on the range, and a draw would miss nearly all of them. They are kept as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from brecq.outliers import Outlier, outlier

OBSERVED_VALUES = 1 << 16
"""How many values of an activation are drawn to initialize its range."""

END_VALUES = 1 << 15
"""How many are kept of its ends, both together."""

_FEWEST = 8
"""One batch gives no more than this share of them, 1 / 8, however few there are."""


class Part(NamedTuple):
    """Of one batch: values drawn at random, float32 [n], from the `middle` values between its ends; values of the
    ends, float32 [m], in random order, of as many as `outside`."""

    drawn: Tensor
    middle: int
    ends: Tensor
    outside: int

    def thinned(self, parts: int) -> Part:
        """With no more values than one of so many parts may have."""
        share = max(_FEWEST, parts)
        drawn, ends = OBSERVED_VALUES // share, END_VALUES // share
        if len(self.drawn) <= drawn and len(self.ends) <= ends:
            return self
        # a view would keep all of it
        return self._replace(drawn=self.drawn[:drawn].clone(), ends=self.ends[:ends].clone())


class Observer:
    """Watches an activation batch by batch.

    Attributes:
        low, high: smallest and largest value so far; +inf and -inf before the first.
        parts: what is kept, by the number of the batch and that of the call in it. It depends on how many batches
            there are, not on the order they came in.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.parts: dict[tuple[int, int], Part] = {}
        self._batch, self._call = -1, 0
        self._samples: range | None = None
        self._largest: dict[int, tuple[range, Tensor]] = {}

    def begin(self, batch: int, samples: range | None = None) -> None:
        """What is added now belongs to the batch of this number, with these of all samples."""
        self._batch, self._call, self._samples = batch, 0, samples

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        rows = x.detach().reshape(len(x), -1) if x.dim() > 1 else x.detach().reshape(1, -1)
        low, high = rows.amin(1), rows.amax(1)  # aminmax takes five times as long
        self.low, self.high = min(self.low, low.min().item()), max(self.high, high.max().item())
        if self._samples is not None and len(rows) == len(self._samples):
            largest = torch.maximum(low.abs(), high.abs()).double().cpu()
            if self._batch in self._largest:  # one of several tensors on one grid
                largest = torch.maximum(largest, self._largest[self._batch][1])
            self._largest[self._batch] = self._samples, largest
        generator = torch.Generator().manual_seed(self._batch + 1 + (self._call << 32))
        self.parts[self._batch, self._call] = _part(x.detach().reshape(-1), generator)
        self._call += 1
        self._thin_out()

    def absorb(self, others: Iterable[Observer]) -> None:
        """Know what others saw of the same activation, in batches of their own."""
        for other in others:
            self.low, self.high = min(self.low, other.low), max(self.high, other.high)
            self.parts.update(other.parts)
            self._largest.update(other._largest)
        self._thin_out()

    def outlier(self) -> Outlier | None:
        """A sample whose largest value lies far beyond the others', as far as rows of what was added were samples."""
        if not self._largest:
            return None
        batches = [self._largest[batch] for batch in sorted(self._largest)]
        found = outlier(torch.cat([largest for _, largest in batches]))
        if found is None:
            return None
        return replace(found, sample=[sample for samples, _ in batches for sample in samples][found.sample])

    def samples(self) -> tuple[Tensor, Tensor]:
        """The values that are kept, float32 [n], and how many each stands for, float32 [n]."""
        values, weights = [torch.empty(0)], [torch.empty(0)]
        for key in sorted(self.parts):
            part = self.parts[key]
            for kept, count in ((part.drawn, part.middle), (part.ends, part.outside)):
                values.append(kept)
                weights.append(torch.full_like(kept, count / max(1, len(kept))))
        device = values[-1].device
        return torch.cat([v.to(device) for v in values]), torch.cat([w.to(device) for w in weights])

    def _thin_out(self) -> None:
        """Of every batch the same number is kept, and memory stays bounded."""
        self.parts = {key: part.thinned(len(self.parts)) for key, part in self.parts.items()}


def _part(flat: Tensor, generator: torch.Generator) -> Part:
    """Of the values of one batch, 1-D."""
    count, most = flat.numel(), OBSERVED_VALUES // _FEWEST
    if count <= most:  # then each once: the extremes of a few values decide on their range
        every = flat[torch.randperm(count, generator=generator).to(flat.device)].float()
        return Part(every, count, every[:0], 0)
    drawn = flat[torch.randint(count, (most,), generator=generator).to(flat.device)]
    rank = max(1, most * END_VALUES // (2 * _FEWEST * count))
    below, above = drawn.kthvalue(rank).values, drawn.kthvalue(most + 1 - rank).values
    ends = flat.masked_select((flat < below) | (flat > above))
    order = torch.randperm(len(ends), generator=generator).to(flat.device)
    inside = drawn.masked_select((drawn >= below) & (drawn <= above))
    return Part(inside.float(), count - len(ends), ends[order].float(), len(ends)).thinned(_FEWEST)
