"""What is remembered of an activation until its range is chosen: its extremes and a bounded number of its values."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

OBSERVED_VALUES = 1 << 16
"""How many values of an activation are kept to initialize its range."""

_FEWEST = 8
"""One batch gives no more than this share of them, 1 / 8, however few there are."""


class Observer:
    """Watches an activation batch by batch.

    Attributes:
        low, high: smallest and largest value so far; +inf and -inf before the first.
        parts: values seen, drawn at random from each batch, float32 [n] each, by the number of the batch and that of
            the call in it. What is kept of them depends on how many there are, not on the order they came in.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.parts: dict[tuple[int, int], Tensor] = {}
        self._batch, self._call = -1, 0

    def begin(self, batch: int) -> None:
        """What is added now belongs to the batch of this number."""
        self._batch, self._call = batch, 0

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        self.low, self.high = min(self.low, low.item()), max(self.high, high.item())
        generator = torch.Generator().manual_seed(self._batch + 1 + (self._call << 32))
        flat = x.detach().reshape(-1)
        count = min(flat.numel(), OBSERVED_VALUES // _FEWEST)
        few = count == flat.numel()  # then each once: the extremes of a few values decide on their range
        index = (
            torch.randperm(count, generator=generator)
            if few
            else torch.randint(flat.numel(), (count,), generator=generator)
        )
        self.parts[self._batch, self._call] = flat[index.to(x.device)].float()
        self._call += 1
        self._thin_out()

    def absorb(self, others: Iterable[Observer]) -> None:
        """Know what others saw of the same activation, in batches of their own."""
        for other in others:
            self.low, self.high = min(self.low, other.low), max(self.high, other.high)
            self.parts.update(other.parts)
        self._thin_out()

    def samples(self) -> Tensor:
        """The values that are kept, float32 [n]."""
        return torch.cat([self.parts[key] for key in sorted(self.parts)]) if self.parts else torch.empty(0)

    def _thin_out(self) -> None:
        """Of every batch the same number is kept, and memory stays bounded."""
        most = OBSERVED_VALUES // max(_FEWEST, len(self.parts))
        for key, part in self.parts.items():
            if len(part) > most:
                self.parts[key] = part[:most].clone()  # a view would keep all of it
