"""LiteRT's kernels of int16 activations and int8 weights (16x8), all zero points 0, as its interpreter runs them.

Where 32 bits hold every sum of a layer, its bias has 32 bits in the file, and sums are multiplied by 31. Other sums
have 64 bits: a convolution multiplies them by 15, so that codes beyond 2^14 may be a step beside the nearest one, a
linear layer in float64. So do those of every depthwise convolution, whose kernel takes no other bias.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from brecq.converted.grids import QUANTIZE, Grid
from brecq.deploy.simulate.arithmetic import (
    FixedPoint,
    Layer,
    away,
    by_reciprocal,
    layer_multipliers,
    multiplier,
    rescale,
)
from brecq.deploy.simulate.kernels import bounded, single
from brecq.graph import ops
from brecq.graph.integer import is_join, operands
from brecq.graph.reach import origin_of

aten = ops.aten

HEADROOM = 15
"""Bits that an addition's operands are shifted up by before they are rescaled."""


class Reference16(FixedPoint):
    """The reference kernels, whose linear layers all multiply in float64. Functions of one element are float."""

    optimized = False

    def looks_up(self, name: str, source: Grid, grid: Grid, slope: float) -> bool:
        return False

    def requantize(self, layer: Layer, total: Tensor, source: Grid, steps: Tensor, grid: Grid) -> Tensor:
        narrow = has_int32_bias(layer)
        if layer.kind == "linear" and not (narrow and self.optimized):
            factor = float(single(source.scale)) * steps.double() / float(single(grid.scale))
            return bounded(away(total.double() * factor), grid)
        multipliers = layer_multipliers(source, steps, grid)
        if narrow:
            halves = "up" if self.optimized and layer.groups == 1 else "away"
            return bounded(rescale(total, *multipliers, halves=halves), grid)
        return bounded(rescale_wide(total, *multipliers), grid)

    def add(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, grid: Grid) -> Tensor:
        twice = 2 * max(grid_a.scale, grid_b.scale)
        first, second = (
            self._operand(codes.to(torch.int64), *multiplier(own.scale / twice), a.shape == b.shape)
            for codes, own in ((a, grid_a), (b, grid_b))
        )
        return bounded(rescale(first + second, *multiplier(twice / ((1 << HEADROOM) * grid.scale))), grid)

    def _operand(self, codes: Tensor, whole: int, shift: int, alike: bool) -> Tensor:
        """An operand of an addition, in units of 2^-15 of twice the larger step."""
        return rescale(codes << HEADROOM, whole, shift)

    def multiply(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, grid: Grid) -> Tensor:
        factor = single(grid_a.scale) * single(grid_b.scale) / single(grid.scale)
        return bounded(rescale(a.to(torch.int64) * b.to(torch.int64), *multiplier(float(factor))), grid)


class LiteRT16(Reference16):
    """What the interpreter runs by default.

    Operands of one shape are added 16 numbers at a time, by instructions that round an operand once, and float inputs
    are quantized 8 at a time, by a product with 1 / scale. What is left over is for loops like the reference kernels',
    and so are operands that broadcast.
    """

    optimized = True

    def is_loose(self, node: Node) -> bool:
        """True where numbers are left over: which ones is for the file's layout to say."""
        count = math.prod(node.meta["val"].shape[1:]) if node.target in (QUANTIZE, aten.add.Tensor) else 0
        if node.target is QUANTIZE:
            source: Any = node.args[0]
            return origin_of(source).op == "placeholder" and count % 8 != 0
        return is_join(node, aten.add.Tensor) and _is_alike(node) and count % 16 != 0

    def quantize(self, x: Tensor, grid: Grid) -> Tensor:
        return by_reciprocal(x, grid)

    def _operand(self, codes: Tensor, whole: int, shift: int, alike: bool) -> Tensor:
        up = HEADROOM + shift
        if not alike:
            return super()._operand(codes, whole, shift, alike)
        return rescale(codes << up if up >= 0 else codes >> -up, whole, 0)


def has_int32_bias(layer: Layer) -> bool:
    """Whether the bias beside 16-bit codes is written with 32 bits, not 64."""
    return layer.int32 and not (layer.depthwise and layer.groups > 1)


def _is_alike(addition: Node) -> bool:
    left, right = (each.meta["val"].shape for each in operands(addition))
    return bool(left == right)


def rescale_wide(x: Tensor, whole: Tensor, shift: Tensor) -> Tensor:
    """x·m·2^(shift-31) of 64-bit whole numbers, m cut to 15 bits, rounded once, halves up."""
    reduced = torch.where(whole < 0x7FFF0000, (whole + (1 << 15)) >> 16, 0x7FFF)
    right = 15 - shift
    return (x.to(torch.int64) * reduced + (torch.ones_like(right) << (right - 1))) >> right
