"""What is remembered of an activation until its range is chosen: its extremes and a bounded number of its values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

OBSERVED_VALUES = 1 << 16
"""How many values of an activation are kept to initialize its range."""


class Observer:
    """Watches an activation batch by batch.

    Attributes:
        low, high: smallest and largest value so far; +inf and -inf before the first.
        parts: values seen, drawn at random from each batch, float32 [n] each.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.parts: list[Tensor] = []

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        self.low, self.high = min(self.low, low.item()), max(self.high, high.item())
        generator = torch.Generator().manual_seed(len(self.parts))
        flat = x.detach().reshape(-1)
        count = min(flat.numel(), OBSERVED_VALUES // 8)
        index = torch.randint(flat.numel(), (count,), generator=generator).to(x.device)
        self.parts.append(flat[index].float())
        if len(self.parts) > 8:  # thin out, so that every batch is represented and memory stays bounded
            self.parts = [part[::2] for part in self.parts]
            self.parts = list(torch.cat(self.parts).chunk(4))

    def samples(self) -> Tensor:
        """The values that are kept, float32 [n]."""
        return torch.cat(self.parts) if self.parts else torch.empty(0)
