"""Grids: the values that a quantized tensor may take."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from brecq.quant import affine
from brecq.quant.affine import IntRange


@dataclass(frozen=True)
class Grid:
    """The values (q − zero_point)·scale for whole q in `range`.

    Attributes:
        scale: float32, positive: [C] along dimension `axis`, or one element where `axis` is `None`.
        zero_point: float32 whole numbers inside `range`, of scale's shape.
    """

    scale: Tensor
    zero_point: Tensor
    range: IntRange
    axis: int | None = None

    def with_scale(self, scale: Tensor) -> Grid:
        """The grid of the same codes with other steps."""
        return replace(self, scale=scale)

    def spread(self, ndim: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point, broadcastable with a tensor of `ndim` dimensions."""
        if self.axis is None:
            return self.scale.reshape(()), self.zero_point.reshape(())
        return affine.per_channel(self.scale, ndim, self.axis), affine.per_channel(self.zero_point, ndim, self.axis)

    def quantize(self, x: Tensor) -> Tensor:
        """Nearest codes, float32, of x's shape."""
        return affine.quantize(x, *self.spread(x.dim()), self.range)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Float32 values of `codes`."""
        return affine.dequantize(codes, *self.spread(codes.dim()))
