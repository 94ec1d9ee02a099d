"""What is remembered of an activation until its range is chosen: its extremes and a bounded number of its values.

Values in the middle are like one another, and some drawn at random stand for all. The few at the ends are not: what it
costs to clip them decides on the range, and a draw would miss nearly all of them. They are kept as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

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

    def begin(self, batch: int) -> None:
        """What is added now belongs to the batch of this number."""
        self._batch, self._call = batch, 0

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        self.low, self.high = min(self.low, low.item()), max(self.high, high.item())
        generator = torch.Generator().manual_seed(self._batch + 1 + (self._call << 32))
        self.parts[self._batch, self._call] = _part(x.detach().reshape(-1), generator)
        self._call += 1
        self._thin_out()

    def absorb(self, others: Iterable[Observer]) -> None:
        """Know what others saw of the same activation, in batches of their own."""
        for other in others:
            self.low, self.high = min(self.low, other.low), max(self.high, other.high)
            self.parts.update(other.parts)
        self._thin_out()

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
