"""How the cache keeps a tensor: as it is, as codes of a grid (a quarter of float32, nothing lost), in half precision.

Half precision is float16 in units of a power of two chosen so that the largest value of the first batch is 16: values
down to a 262 144th of it keep eleven bits, and values up to 4 094 times as large fit. What does not fit is not stored
that way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from brecq.quant.grid import Grid

_LARGEST = torch.finfo(torch.float16).max


class Coding(Protocol):
    @property
    def dtype(self) -> torch.dtype:
        """Of what is stored."""

    def encode(self, x: Tensor) -> Tensor | None:
        """What is stored of x, or `None` where x does not fit."""

    def decode(self, stored: Tensor) -> Tensor:
        """x, or what comes close to it, in the dtype it had."""


@dataclass(frozen=True)
class AsIs:
    dtype: torch.dtype

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, stored: Tensor) -> Tensor:
        return stored


@dataclass(frozen=True)
class Codes:
    """Values of `grid`, that of a whole tensor with at most 256 codes."""

    grid: Grid
    dtype: torch.dtype = torch.uint8

    def encode(self, x: Tensor) -> Tensor:
        return (self.grid.quantize(x) - self.grid.range.low).to(torch.uint8)

    def decode(self, stored: Tensor) -> Tensor:
        return self.grid.dequantize(stored.to(torch.float32) + self.grid.range.low)


@dataclass(frozen=True)
class Half:
    """Float32 values in units of `unit`, a power of two."""

    unit: float
    dtype: torch.dtype = torch.float16

    @classmethod
    def of(cls, first: Tensor) -> Half:
        """For values like those of `first`."""
        largest = first.abs().amax().item() if first.numel() else 0.0
        exponent = math.frexp(largest)[1] if math.isfinite(largest) and largest > 0 else 0
        return cls(2.0 ** max(-100, min(100, exponent - 4)))

    def encode(self, x: Tensor) -> Tensor | None:
        scaled = x * (1 / self.unit)
        return scaled.to(torch.float16) if bool((scaled.abs() <= _LARGEST).all()) else None

    def decode(self, stored: Tensor) -> Tensor:
        return stored.to(torch.float32) * self.unit
