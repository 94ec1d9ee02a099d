"""Uniform affine quantization: x̂ = s·(clamp(round(x/s) + z, low, high) − z).

The arithmetic is that of PyTorch's `quantized_decomposed.quantize_per_tensor` / `quantize_per_channel` and their
`dequantize` counterparts, operation by operation, so that a fake-quantized network equals the program that
PT2E's convert makes of it bit for bit. That fixes three choices: x is multiplied by the float32 reciprocal of the
scale instead of divided by it, rounding is half-to-even, and the zero point is added after rounding. (The
per-tensor operators take the reciprocal in double precision; rounded to float32 it is the same number, as the
double rounding of a quotient is harmless when the wider format has at least 2·24 + 2 bits.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brecq.errors import ConfigError


@dataclass(frozen=True)
class IntRange:
    """The integers `low..high` that codes are clamped to, both ends included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"the integer range {self.low}..{self.high} has fewer than two levels; raise its end")

    @classmethod
    def weights(cls, bits: int, symmetric: bool) -> IntRange:
        """Signed; symmetric at 8 bits leaves out −128, as int8 kernels expect."""
        if symmetric and bits == 8:
            return cls(-127, 127)
        return cls(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    @classmethod
    def activations(cls, bits: int, *, signed: bool = False) -> IntRange:
        """From 0 on, or around 0; of more than 8 bits always around 0, as int16 holds them."""
        low = -(2 ** (bits - 1)) if signed or bits > 8 else 0
        return cls(low, low + 2**bits - 1)

    @property
    def levels(self) -> int:
        """How many codes there are."""
        return self.high - self.low + 1

    @property
    def carrier(self) -> torch.dtype:
        """The type that carries codes of activations: uint8 from 0 on, otherwise int8 or int16."""
        if self.low >= 0:
            return torch.uint8
        return torch.int8 if self.bits <= 8 else torch.int16

    @property
    def bits(self) -> int:
        """The fewest bits that tell all codes apart."""
        return (self.levels - 1).bit_length()


def per_channel(values: Tensor, ndim: int, axis: int) -> Tensor:
    """View `values` [C] so that it broadcasts along `axis` of a tensor of `ndim` dimensions; 0-dim stays as it is."""
    if values.dim() == 0:
        return values
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange) -> Tensor:
    """Codes of `x` as float32 integers in `range`, of x's shape.

    `scale` (float32, positive) and `zero_point` (integers in any dtype) are per tensor (0-dim or [1]) or already
    broadcastable, see `per_channel`. x may be float32, bfloat16 or float16.
    """
    zero_point = zero_point.to(torch.float32)
    return torch.clamp(torch.round(x.to(torch.float32) * (1.0 / scale)) + zero_point, range.low, range.high)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Float32 values of `codes`."""
    return (codes.to(torch.float32) - zero_point.to(torch.float32)) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange) -> Tensor:
    """`dequantize(quantize(x))`, float32; not differentiable (see `kernels.lsq_qdrop` for learning)."""
    return dequantize(quantize(x, scale, zero_point, range), scale, zero_point)
