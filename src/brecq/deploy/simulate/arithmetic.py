"""How runtimes rescale sums: each is a set of integer kernels, that of ONNX Runtime unless another is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from brecq.converted.grids import Grid
from brecq.deploy.simulate import kernels
from brecq.deploy.simulate.kernels import bounded, single


@dataclass(frozen=True)
class Layer:
    """What decides which kernel computes a layer. `int4`: its weights fit four bits. `odd`: so is the number of its
    inputs, for a linear one. `int32`: 32 bits hold its sums of 16-bit codes."""

    kind: str
    groups: int = 1
    depthwise: bool = False
    int4: bool = False
    odd: bool = False
    int32: bool = False


class OnnxRuntime:
    """ONNX Runtime's kernels; those of others say where they differ."""

    transposed = False
    """Whether transposed convolutions compute on integers."""

    linear_outputs = False
    """Whether linear layers write codes only."""

    moves_codes = False
    """Whether codes of one grid are put on another as integers, not as float numbers."""

    joins_constants = False
    """Whether a constant that is joined with codes is codes, too."""

    products = True
    """Whether hardswish is a product of codes, for want of a kernel."""

    def looks_up(self, name: str, source: Grid, grid: Grid, slope: float) -> bool:
        """Whether a function of one element (`brecq.graph.integer.function_of`) of codes computes codes."""
        return False

    def function(self, name: str, codes: Tensor, source: Grid, slope: float, grid: Grid) -> Tensor | None:
        """The codes of such a function; `None` where they are what rounding its numbers gives."""
        return None

    def is_loose(self, node: Node) -> bool:
        """Whether the runtime computes an operator on codes by several kernels, whose codes may be a step apart."""
        return False

    def quantize(self, x: Tensor, grid: Grid) -> Tensor:
        return kernels.quantize(x, grid)

    def requantize(self, layer: Layer, total: Tensor, source: Grid, steps: Tensor, grid: Grid) -> Tensor:
        """Codes of a layer's exact sums.

        Args:
            steps: of the weight, float32, broadcasting to `total`.
        """
        return kernels.requantize(total, single(source.scale) * steps, grid)

    def add(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, grid: Grid) -> Tensor:
        return kernels.add(a, grid_a, b, grid_b, grid)

    def multiply(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, grid: Grid) -> Tensor:
        return kernels.multiply(a, grid_a, b, grid_b, grid)

    def global_average(self, codes: Tensor, source: Grid, grid: Grid) -> Tensor:
        return kernels.global_average(codes, source, grid)

    def average(
        self, pool: Callable[[Tensor], Tensor], window: int, codes: Tensor, source: Grid, grid: Grid
    ) -> Tensor:
        """`pool` takes averages of windows of so many elements."""
        return kernels.average(pool, codes, source, grid)

    def regrid(self, codes: Tensor, source: Grid, grid: Grid) -> Tensor:
        return kernels.regrid(codes, source, grid)


class FixedPoint(OnnxRuntime):
    """CMSIS-NN's kernels, and LiteRT's reference kernels: multipliers of 31 bits and shifts.

    Numbers are quantized by division, halves away from zero.
    """

    transposed = linear_outputs = moves_codes = joins_constants = True
    products = False

    def looks_up(self, name: str, source: Grid, grid: Grid, slope: float) -> bool:
        return True

    def quantize(self, x: Tensor, grid: Grid) -> Tensor:
        return bounded(away(x / single(grid.scale)) + grid.zero_point, grid)

    def requantize(self, layer: Layer, total: Tensor, source: Grid, steps: Tensor, grid: Grid) -> Tensor:
        return bounded(rescale(total, *layer_multipliers(source, steps, grid)) + grid.zero_point, grid)

    def add(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, grid: Grid) -> Tensor:
        twice = 2 * max(grid_a.scale, grid_b.scale)
        (first, second), total = (
            [
                rescale((codes.to(torch.int64) - own.zero_point) << 20, *multiplier(own.scale / twice))
                for codes, own in ((a, grid_a), (b, grid_b))
            ],
            multiplier(twice / ((1 << 20) * grid.scale)),
        )
        return bounded(rescale(first + second, *total) + grid.zero_point, grid)

    def multiply(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, grid: Grid) -> Tensor:
        product = (a.to(torch.int64) - grid_a.zero_point) * (b.to(torch.int64) - grid_b.zero_point)
        return bounded(rescale(product, *multiplier(grid_a.scale * grid_b.scale / grid.scale)) + grid.zero_point, grid)

    def global_average(self, codes: Tensor, source: Grid, grid: Grid) -> Tensor:
        count = codes.shape[2] * codes.shape[3]
        total = (codes.to(torch.int64) - source.zero_point).sum((2, 3), keepdim=True)
        return bounded(rescale(total, *mean_multiplier(source.scale / grid.scale, count)) + grid.zero_point, grid)

    def average(
        self, pool: Callable[[Tensor], Tensor], window: int, codes: Tensor, source: Grid, grid: Grid
    ) -> Tensor:
        """As a depthwise convolution with ones."""
        total = _window_sums(pool, window, codes, source)
        ones = Layer("conv2d", depthwise=True, int4=False)
        return self.requantize(ones, total, source, single(1) / single(window), grid)

    def regrid(self, codes: Tensor, source: Grid, grid: Grid) -> Tensor:
        if source.same_codes(grid):
            return codes.clamp(grid.low, grid.high)
        moved = rescale(codes.to(torch.int64) - source.zero_point, *multiplier(source.scale / grid.scale))
        return bounded(moved + grid.zero_point, grid)


class LiteRT(FixedPoint):
    """LiteRT's kernels as its interpreter chooses them: XNNPACK's, and its own for what XNNPACK does not take, which
    are convolutions with 4-bit weights, those in groups, and linear layers with 4-bit weights of odd many inputs."""

    def quantize(self, x: Tensor, grid: Grid) -> Tensor:
        return by_reciprocal(x, grid)

    def looks_up(self, name: str, source: Grid, grid: Grid, slope: float) -> bool:
        if name in PRESCRIBED:
            return (grid.scale, grid.zero_point + int8_offset(grid)) == PRESCRIBED[name]
        ratio = source.scale / grid.scale
        in_range = 2**-8 <= ratio <= 128 and 2**-8 <= ratio * slope <= 128
        return name == "gelu" or (name == "elu" and slope == 1) or (name == "leaky_relu" and in_range)

    def function(self, name: str, codes: Tensor, source: Grid, slope: float, grid: Grid) -> Tensor | None:
        if name != "leaky_relu" or not self.looks_up(name, source, grid, slope):
            return None  # of a function that is looked up too
        shifted = codes.to(torch.int64) - source.zero_point
        ratio = single(source.scale) / single(grid.scale)
        factors = [round(float(single(factor) * ratio) * 256) for factor in (1, slope)]
        moved = (shifted * torch.where(shifted < 0, factors[1], factors[0]) + 128) >> 8
        return bounded(moved + grid.zero_point, grid)

    def requantize(self, layer: Layer, total: Tensor, source: Grid, steps: Tensor, grid: Grid) -> Tensor:
        if layer.groups > 1 and not layer.depthwise:
            return super().requantize(layer, total, source, steps, grid)
        if layer.int4 and (layer.kind in ("conv1d", "conv2d") or layer.odd):
            multipliers = layer_multipliers(source, steps, grid)
            return bounded(rescale(total, *multipliers, halves="up") + grid.zero_point, grid)
        return kernels.requantize(total, single(source.scale) * steps, grid)

    def add(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, grid: Grid) -> Tensor:
        ratios = [single(own.scale) / single(grid.scale) for own in (grid_a, grid_b)]
        shift = 21 - math.frexp(max(map(float, ratios)))[1]
        first, second = (
            (codes.to(torch.int64) - own.zero_point) * round(float(ratio) * 2**shift)
            for codes, own, ratio in ((a, grid_a, ratios[0]), (b, grid_b, ratios[1]))
        )
        return bounded(((first + second + (1 << (shift - 1))) >> shift) + grid.zero_point, grid)

    def multiply(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, grid: Grid) -> Tensor:
        product = (a.to(torch.float32) - grid_a.zero_point) * (b.to(torch.float32) - grid_b.zero_point)
        step = single(grid_a.scale) * single(grid_b.scale) / single(grid.scale)
        return bounded(torch.round(product * step) + grid.zero_point, grid)

    def global_average(self, codes: Tensor, source: Grid, grid: Grid) -> Tensor:
        """Of int8 codes as they are: the zero points go into one float addend, which decides how ties round."""
        count = codes.shape[2] * codes.shape[3]
        before, after = int8_offset(source), int8_offset(grid)
        total = (codes.to(torch.int64) + before).sum((2, 3), keepdim=True).to(torch.float32)
        factor = single(source.scale) / single(grid.scale) / count
        addend = single(grid.zero_point + after) - single(source.zero_point + before) * count * factor
        return bounded(torch.round(total * factor + addend) - after, grid)

    def regrid(self, codes: Tensor, source: Grid, grid: Grid) -> Tensor:
        if source.same_codes(grid):
            return codes.clamp(grid.low, grid.high)
        factor = round(float(single(source.scale) / single(grid.scale)) * 256)
        moved = ((codes.to(torch.int64) - source.zero_point) * factor + 128) >> 8
        return bounded(moved + grid.zero_point, grid)


PRESCRIBED = {"sigmoid": (2**-8, -128), "tanh": (2**-7, 0)}
"""Scales and zero points of results that LiteRT's int8 kernels insist on."""


def by_reciprocal(x: Tensor, grid: Grid) -> Tensor:
    """Codes of float32 values multiplied by 1 / scale, halves to even."""
    return bounded(torch.round(x * (single(1) / single(grid.scale))) + grid.zero_point, grid)


def away(x: Tensor) -> Tensor:
    """Whole numbers, halves away from zero; float64, in which a number next to a half stays on its side of it."""
    exact = x.to(torch.float64)
    return torch.trunc(exact + torch.copysign(torch.tensor(0.5, dtype=torch.float64), exact))


def int8_offset(grid: Grid) -> int:
    """What is added to a grid's codes to hold them in int8.

    Codes narrower than 8 bits are moved up to 127, so that saturation bounds them above.
    """
    offset = 127 - grid.high
    if grid.whole or not -128 <= grid.zero_point + offset <= 127:
        return -128 if grid.dtype is torch.uint8 else 0
    return offset


def multiplier(factor: float) -> tuple[int, int]:
    """A positive real factor as m·2^(shift-31), m of 31 bits."""
    fraction, shift = math.frexp(factor)
    whole = math.floor(fraction * 2**31 + 0.5)
    if whole == 2**31:
        whole, shift = whole // 2, shift + 1
    return (0, 0) if shift < -31 else (whole, shift)


def mean_multiplier(factor: float, count: int) -> tuple[int, int]:
    """The multiplier of a mean of so many elements: that of the factor, divided by the count in integers."""
    whole, shift = multiplier(factor)
    more = min(count.bit_length() - 1, 32, 31 + shift)
    return (whole << more) // count, shift - more


def rescale(x: Tensor, whole: int | Tensor, shift: int | Tensor, halves: str = "away") -> Tensor:
    """x·m·2^(shift-31) in two roundings: of the product's high half, and of the shift.

    Args:
        x: whole numbers. whole, shift: see `multiplier`; tensors broadcast. halves: of the second rounding go `away`
            from zero or `up`.
    """
    x, whole, shift = x.to(torch.int64), torch.as_tensor(whole), torch.as_tensor(shift)
    product = (x << shift.clamp(min=0)) * whole
    nudge = torch.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = torch.div(product + nudge, 1 << 31, rounding_mode="trunc")
    right = (-shift).clamp(min=0)
    half = (torch.ones_like(right) << right) >> 1
    if halves == "up":
        return (high + half) >> right
    rest = high & ((torch.ones_like(right) << right) - 1)
    limit = (((torch.ones_like(right) << right) - 1) >> 1) + (high < 0).to(torch.int64)
    return (high >> right) + (rest > limit).to(torch.int64)


def layer_multipliers(source: Grid, steps: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Of each output channel, in the shape of `steps`."""
    factors = float(single(source.scale)) * steps.double() / float(single(grid.scale))
    pairs = [multiplier(factor) for factor in factors.reshape(-1).tolist()]
    whole, shift = (torch.tensor(each, dtype=torch.int64).reshape(factors.shape) for each in zip(*pairs, strict=True))
    return whole, shift


def _window_sums(pool: Callable[[Tensor], Tensor], window: int, codes: Tensor, source: Grid) -> Tensor:
    return torch.round(pool(codes.to(torch.float64) - source.zero_point) * window)
