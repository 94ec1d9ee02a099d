"""Integer kernels as ONNX Runtime computes them, code for code.

Codes are uint8 (int8 where a grid says so) tensors. What a kernel accumulates is exact; what it rescales is float32,
one rounding per operation, in the order of the runtime's own kernels. On x86 its addition uses fused multiply-add, for
the zero points' share too, which is reproduced here by one rounding from float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from brecq.converted.grids import Grid

EXACT_FLOAT32 = 2**24
"""Sums of integers below this are exact in float32, in any order."""


def single(value: float | Tensor) -> Tensor:
    """A float32 number, 0-dim: arithmetic on it rounds as the runtime's does."""
    return torch.as_tensor(value, dtype=torch.float32)


def quantize(x: Tensor, grid: Grid) -> Tensor:
    """QuantizeLinear and Clip: codes of float32 values. It divides by the scale, PyTorch multiplies by its inverse."""
    return bounded(torch.round(x / single(grid.scale)) + grid.zero_point, grid)


def dequantize(codes: Tensor, grid: Grid) -> Tensor:
    """DequantizeLinear: float32 values of codes."""
    return (codes.to(torch.float32) - grid.zero_point) * single(grid.scale)


def accumulate(
    operator: Callable[[Tensor, Tensor], Tensor],
    codes: Tensor,
    grid: Grid,
    weight: Tensor,
    bias: Tensor | None,
    axis: int = 0,
) -> Tensor:
    """The int32 accumulators of a convolution or linear layer, exact: in float32 where it holds them, else float64.

    Args:
        operator: of activation and weight, without bias. weight: float32 integers, zero points subtracted, the output
            channels along dimension `axis`. bias: int32, shaped to broadcast to the output.
    """
    low, high = torch.iinfo(grid.dtype).min - grid.zero_point, torch.iinfo(grid.dtype).max - grid.zero_point
    magnitude = max(-low, high, 0)
    wide = largest_sum(weight, bias, magnitude, axis) >= EXACT_FLOAT32
    kind = torch.float64 if largest_sum(weight, None, magnitude, axis) >= EXACT_FLOAT32 else torch.float32
    total = operator(codes.to(kind) - grid.zero_point, weight.to(kind))
    if bias is not None:
        total = total.to(torch.float64 if wide else torch.float32) + bias
    return total


def largest_sum(weight: Tensor, bias: Tensor | None, magnitude: int, axis: int) -> int:
    """What no sum of a layer exceeds, whatever it reads.

    Args:
        weight: integers, the output channels along dimension `axis`. bias: integers. magnitude: of the inputs.
    """
    products = weight.abs().movedim(axis, 0).flatten(1).sum(1, dtype=torch.float64).max() if weight.numel() else 0
    return int(products) * magnitude + (0 if bias is None or not bias.numel() else int(bias.abs().max()))


def requantize(total: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """QLinearConv and QGemm: codes of accumulators whose step is s_x·s_w (float32, broadcasting to `total`)."""
    total = total.to(torch.float32)  # the one rounding of large sums
    return bounded(torch.round(total * (step / single(grid.scale))) + grid.zero_point, grid)


def add(a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, grid: Grid) -> Tensor:
    """QLinearAdd."""
    factor_a, factor_b = single(grid_a.scale) / single(grid.scale), single(grid_b.scale) / single(grid.scale)
    zeros = _multiply_add(single(grid_a.zero_point), factor_a, factor_b * grid_b.zero_point)
    partial = _multiply_add(b, factor_b, grid.zero_point - zeros)
    return bounded(torch.round(_multiply_add(a, factor_a, partial)), grid)


def _multiply_add(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """x * factor + addend in float32, rounded once. Of at most 8-bit `x` the product is exact in float64."""
    return (x.to(torch.float64) * factor.double() + addend.double()).to(torch.float32)


def multiply(a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, grid: Grid) -> Tensor:
    """QLinearMul."""
    product = (a.to(torch.float32) - grid_a.zero_point) * (b.to(torch.float32) - grid_b.zero_point)
    step = single(grid_a.scale) * single(grid_b.scale) / single(grid.scale)
    return bounded(torch.round(product * step + grid.zero_point), grid)


def global_average(codes: Tensor, source: Grid, grid: Grid) -> Tensor:
    """QLinearGlobalAveragePool over height and width of [N, C, H, W]; [N, C, 1, 1]."""
    count = codes.shape[2] * codes.shape[3]
    total = (codes.to(torch.int64) - source.zero_point).sum((2, 3), keepdim=True).to(torch.float32)
    factor = single(source.scale) / (single(grid.scale) * count)
    return bounded(torch.round(total * factor) + grid.zero_point, grid)


def average(pool: Callable[[Tensor], Tensor], codes: Tensor, source: Grid, grid: Grid) -> Tensor:
    """QLinearAveragePool: `pool` averages the dequantized values in float32.

    Unlike QuantizeLinear, the kernel rounds after adding the zero point.
    """
    return bounded(torch.round(pool(dequantize(codes, source)) / single(grid.scale) + grid.zero_point), grid)


def regrid(codes: Tensor, source: Grid, grid: Grid) -> Tensor:
    """QLinearConcat: codes of one part on the grid of the whole."""
    if source.same_codes(grid):
        return codes.clamp(grid.low, grid.high)
    return quantize(dequantize(codes, source), grid)


def bounded(values: Tensor, grid: Grid) -> Tensor:
    """Whole numbers as codes of a grid: those beyond its ends become its ends."""
    return values.clamp(grid.low, grid.high).to(grid.dtype)


def fits_int32(weight: Tensor, bias: Tensor | None, axis: int) -> bool:
    """True if 32 bits hold every sum of a layer that reads 16-bit codes; for arguments see `largest_sum`."""
    return largest_sum(weight, bias, 1 << 15, axis) < 1 << 31


def fits_int4(integers: Tensor) -> bool:
    """True if four bits hold every one of the integers."""
    return not integers.numel() or bool((integers.min() >= -8) & (integers.max() <= 7))
