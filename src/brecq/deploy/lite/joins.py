"""Quantizers, and operators without weights that compute on codes: additions, products, pooling, concatenation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx import Node

from brecq.converted.grids import DEQUANTIZE, QUANTIZE, grid_of
from brecq.deploy.lite.functions import looked_up, native
from brecq.deploy.lite.grids import CodeGrid, placed
from brecq.deploy.lite.lowering import Lowering, lowers
from brecq.deploy.lite.moves import sliced, view
from brecq.deploy.lite.padding import SAME, pair, pooling, same, windows
from brecq.deploy.lite.program import Quantization, Tensor, constant, no_bias
from brecq.deploy.lite.values import CHANNELS_LAST, Layout, Pending, Value, arranged, identity, usual
from brecq.errors import ExportError
from brecq.graph import ops

aten = ops.aten


@lowers(QUANTIZE)
def quantize(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    source, name, grid = args[0], low.quantizers[node], placed(grid_of(node))
    name = low.build.free(name)
    if isinstance(source, torch.Tensor):
        tensor = _stored(name, low.env[node], grid)
        return low.quantized(low.quantizers[node], tensor.shape, identity(len(tensor.shape)), tensor, grid.offset)
    if isinstance(source, Pending):
        found = source.on(grid, name)
        ((layout, tensor),) = found.codes.items()
        return low.quantized(low.quantizers[node], found.shape, layout, tensor, grid.offset)
    value = low.value(source)
    if (own := native(low, node, grid)) is not None:
        x, kind, options = own
        layout = x.layouts[0]
        tensor = low.build.emit_on(kind, [x.code(layout)], name, arranged(x.shape, layout), grid, **options)
        return low.quantized(low.quantizers[node], x.shape, layout, tensor, grid.offset)
    function = None if value.is_quantized or not low.runtime.tables else looked_up(low, node, grid)
    if function is not None:
        value, table = function
        layout = value.layouts[0]
        codes = value.code(layout)
        tensor = low.build.emit("LOOKUP", [codes, table], name, codes.shape, Tensor("", (), "int8", grid.quantization))
        return low.quantized(low.quantizers[node], value.shape, layout, tensor, grid.offset)
    layout = value.layouts[0]
    tensor = regrid(low, value, layout, grid, name)
    return low.quantized(low.quantizers[node], value.shape, layout, tensor, grid.offset)


def regrid(low: Lowering, value: Value, layout: Layout, grid: CodeGrid, name: str) -> Tensor:
    """The codes of a value on a grid."""
    source = value.either(layout)
    if grid.is_whole and (source.dtype, source.quantization) == (grid.dtype, grid.quantization):
        return source
    return low.build.emit_on("QUANTIZE", [source], name, source.shape, grid)


@lowers(DEQUANTIZE)
def dequantize(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    source: Value | torch.Tensor = args[0]
    if isinstance(source, Value):
        return source
    tensor = _stored(low.build.free(str(node.args[0])), source, placed(grid_of(node)))
    return Value(low.build, tensor.name, tensor.shape, codes={identity(len(tensor.shape)): tensor})


def _stored(name: str, codes: torch.Tensor, grid: CodeGrid) -> Tensor:
    """Codes that are a constant of the file."""
    data = (codes.to(torch.int16) + grid.offset).numpy().astype(grid.dtype)
    return Tensor(name, data.shape, grid.dtype, grid.quantization, data)


def _joined(low: Lowering, kind: str, operands: list[Any], float_options: dict[str, Any] | None = None) -> Any:
    """An elementwise operator of two operands, on codes where both have them and a grid follows."""
    rank = max(each.rank if isinstance(each, Value) else np.ndim(each) for each in map(_settled, operands))
    left, right = (_broadcast(low, low.value(_settled(each), rank), rank) for each in operands)
    shape = tuple(np.broadcast_shapes(left.shape, right.shape))
    big = left if left.shape == shape else right
    layout = big.layouts[0]

    def real() -> Value:
        inputs = [left.real(layout), right.real(layout)]
        name = low.build.free(kind.lower())
        return Value(
            low.build, name, shape, reals={layout: low.build.emit(kind, inputs, name, arranged(shape, layout))}
        )

    if not (left.is_quantized and right.is_quantized and kind in ("ADD", "MUL")):
        return real()

    def on(grid: CodeGrid, name: str) -> Value:
        inputs = [left.code(layout), right.code(layout)]
        options = {"potScaleInt16": False} if kind == "ADD" and left.is_wide else {}
        codes = low.build.emit_on(kind, inputs, name, arranged(shape, layout), grid, fuses=True, **options)
        return Value(low.build, name, shape, codes={layout: codes})

    return Pending(on, real)


def _settled(operand: Any) -> Any:
    return operand.real() if isinstance(operand, Pending) else operand


def _broadcast(low: Lowering, value: Value, rank: int) -> Value:
    """With ones in front of its dimensions."""
    if value.rank == rank:
        return value
    return view(low, value, (1,) * (rank - value.rank) + value.shape)


@lowers(aten.add.Tensor, aten.add.Scalar)
def add(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _joined(low, "ADD", [args[0], _scaled(low, args[1], kwargs)])


@lowers(aten.sub.Tensor, aten.sub.Scalar)
def subtract(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _joined(low, "SUB", [args[0], _scaled(low, args[1], kwargs)])


@lowers(aten.rsub.Scalar, aten.rsub.Tensor)
def subtract_from(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _joined(low, "SUB", [args[1], _scaled(low, args[0], kwargs)])


@lowers(aten.mul.Tensor, aten.mul.Scalar)
def multiply(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _joined(low, "MUL", list(args[:2]))


@lowers(aten.div.Tensor, aten.div.Scalar)
def divide(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _joined(low, "DIV", list(args[:2]))


@lowers(aten.maximum.default)
def maximum(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _joined(low, "MAXIMUM", list(args[:2]))


@lowers(aten.minimum.default)
def minimum(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _joined(low, "MINIMUM", list(args[:2]))


def _scaled(low: Lowering, operand: Any, kwargs: dict[str, Any]) -> Any:
    """The second operand of an addition, times `alpha`."""
    alpha = kwargs.get("alpha", 1)
    return operand if alpha == 1 else _joined(low, "MUL", [operand, alpha])


@lowers(*ops.CONCAT - {aten.stack.default})
def concatenate(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    parts = [low.value(part) for part in args[0]]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % parts[0].rank
    return join(low, parts, dim)


@lowers(aten.stack.default)
def stack(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    parts = [low.value(part) for part in args[0]]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % (parts[0].rank + 1)
    shape = (*parts[0].shape[:dim], 1, *parts[0].shape[dim:])
    return join(low, [view(low, part, shape) for part in parts], dim)


def join(low: Lowering, parts: list[Value], dim: int) -> Any:
    """Parts one after another: codes of one grid stay what they are, others move to that of the quantizer behind."""
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    layout = next((part.layouts[0] for part in parts if part.layouts), usual(len(shape)))
    whole = tuple(shape)

    def emit(tensors: list[Tensor], name: str, like: Tensor | None) -> Tensor:
        axis = layout.index(dim)
        return low.build.emit("CONCATENATION", tensors, name, arranged(whole, layout), like, axis=axis)

    def real() -> Value:
        name = low.build.free("concatenation")
        return Value(low.build, name, whole, reals={layout: emit([part.real(layout) for part in parts], name, None)})

    if not all(part.is_quantized for part in parts):
        return real()
    codes = [part.code(layout) for part in parts]
    if len({(each.scale, each.zero_point) for each in codes}) == 1:
        name = low.build.free("concatenation")
        return Value(low.build, name, whole, codes={layout: emit(codes, name, codes[0])})

    def on(grid: CodeGrid, name: str) -> Value:
        tensors = [regrid(low, part, layout, grid, f"{name}_part{number}") for number, part in enumerate(parts)]
        joined = emit(tensors, name, Tensor("", (), grid.dtype, grid.quantization))
        return Value(low.build, name, whole, codes={layout: joined})

    return Pending(on, real)


@lowers(aten.roll.default)
def roll(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = low.value(args[0])
    dims = args[2] if len(args) > 2 else []
    if not dims:
        low.refuse(node, "rolls over all dimensions at once")
    for amount, dim in zip(args[1], dims, strict=True):
        dim, length = dim % x.rank, x.shape[dim % x.rank]
        start = -int(amount) % length
        if start:
            x = join(low, [sliced(low, x, dim, start, length), sliced(low, x, dim, 0, start)], dim)
            x = x if isinstance(x, Value) else x.real()
    return x


@lowers(aten.adaptive_avg_pool2d.default)
def average_all(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = low.value(args[0])
    height, width = x.shape[2:]
    rows, columns = pair(args[1])
    if (rows, columns) == (1, 1):
        return mean(low, x)
    if height % rows or width % columns:
        low.refuse(node, f"averages {height}x{width} into {rows}x{columns} unequal windows")
    size = [height // rows, width // columns]
    return _average(low, x, size, size, [0, 0])


def mean(low: Lowering, x: Value) -> Pending:
    """Over height and width of [N, C, H, W], which stay as ones.

    Raises:
        ExportError: 32 bits may not hold the sum.
    """
    shape, count = (*x.shape[:2], 1, 1), x.shape[2] * x.shape[3]
    if x.is_wide and count >= 1 << 16:
        raise ExportError(
            f"{low.runtime.name}: the sum of {count} numbers of 16 bits may leave 32; quantize with "
            "--activation-bits 8, or pool in two steps"
        )
    inputs = [constant("height_width", [1, 2])]

    def real() -> Value:
        name = low.build.free("mean")
        tensor = low.build.emit(
            "MEAN", [x.real(CHANNELS_LAST), *inputs], name, arranged(shape, CHANNELS_LAST), keepDims=True
        )
        return Value(low.build, name, shape, reals={CHANNELS_LAST: tensor})

    def on(grid: CodeGrid, name: str) -> Value:
        tensor = low.build.emit_on(
            "MEAN", [x.either(CHANNELS_LAST), *inputs], name, arranged(shape, CHANNELS_LAST), grid, keepDims=True
        )
        return Value(low.build, name, shape, codes={CHANNELS_LAST: tensor})

    if not x.is_quantized:
        return Pending(lambda grid, name: _quantized(low, real(), grid, name), real)
    return Pending(on, real)


def _quantized(low: Lowering, value: Value, grid: CodeGrid, name: str) -> Value:
    layout = value.layouts[0]
    return Value(low.build, name, value.shape, codes={layout: regrid(low, value, layout, grid, name)})


@lowers(aten.avg_pool2d.default)
def average(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    size, stride, padding, ceil, include, divisor = (*args[1:], *[None] * 6)[:6]
    if divisor is not None:
        low.refuse(node, f"divides by {divisor}")
    size = pair(size)
    include = True if include is None else include
    x, stride, padding = low.value(args[0]), pair(stride) if stride else size, pair(padding or 0)
    fitting = windows(x.shape[2:], size, stride, [(p, p) for p in padding], [1, 1])
    if ceil and list(low.env[node].shape[2:]) != fitting:
        low.refuse(node, "has windows that reach beyond the picture (ceil_mode)")
    if not include and any(padding):
        return _inner_average(low, node, x, size, stride, padding)
    return _average(low, x, size, stride, padding)


def _inner_average(
    low: Lowering, node: Node, x: Value, size: list[int], stride: list[int], padding: list[int]
) -> Pending:
    """Averages over what lies within the picture, in float: windows differ in how much that is."""
    sides = [same(*each, 1) for each in zip(x.shape[2:], size, stride, strict=True)]
    if [(p, p) for p in padding] != sides:
        low.refuse(node, "leaves out a padding other than SAME (count_include_pad=False)")
    shape = tuple(low.env[node].shape)

    def real() -> Value:
        name = low.build.free("average")
        options: dict[str, Any] = {"filterHeight": size[0], "filterWidth": size[1]}
        options |= {"strideH": stride[0], "strideW": stride[1]}
        memory = arranged(shape, CHANNELS_LAST)
        pooled = low.build.emit("AVERAGE_POOL_2D", [x.real(CHANNELS_LAST)], name, memory, padding=SAME, **options)
        return Value(low.build, name, shape, reals={CHANNELS_LAST: pooled})

    return Pending(lambda grid, name: _quantized(low, real(), grid, name), real)


def _average(low: Lowering, x: Value, size: list[int], stride: list[int], padding: list[int]) -> Pending:
    """On codes, a depthwise convolution with ones: LiteRT's own average pooling knows one grid only."""
    shape = (*x.shape[:2], *windows(x.shape[2:], size, stride, [(p, p) for p in padding], [1, 1]))
    memory = arranged(shape, CHANNELS_LAST)
    strides = {"strideH": stride[0], "strideW": stride[1]}
    channels = x.shape[1]

    def real() -> Value:
        source, code = pooling(low, x.real(CHANNELS_LAST), size, stride, [(p, p) for p in padding], [1, 1], 0)
        name = low.build.free("average")
        options: dict[str, Any] = {"filterHeight": size[0], "filterWidth": size[1], "padding": code, **strides}
        if padding != [0, 0] and code == 0:  # SAME leaves the padding out
            source, code = pooling(
                low, x.real(CHANNELS_LAST), size, stride, [(p, p) for p in padding], [1, 1], 0, explicit=True
            )
            options["padding"] = code
        pooled = low.build.emit("AVERAGE_POOL_2D", [source], name, memory, **options)
        return Value(low.build, name, shape, reals={CHANNELS_LAST: pooled})

    if not x.is_quantized:
        return Pending(lambda grid, name: _quantized(low, real(), grid, name), real)

    def on(grid: CodeGrid, name: str) -> Value:
        source, code = pooling(low, x.code(CHANNELS_LAST), size, stride, [(p, p) for p in padding], [1, 1], 0)
        step = np.float32(1) / np.float32(size[0] * size[1])
        ones = np.ones((1, *size, channels), np.int8)
        weight = Tensor(f"ones{size[0]}x{size[1]}x{channels}", ones.shape, "int8", None, ones)
        weight.quantization = Quantization(np.full(channels, step, np.float32), 0, 3)
        scale = np.full(channels, step * np.float32(source.scale), np.float32)
        bias = no_bias(channels, scale, "int64" if x.is_wide else "int32")
        options = {"padding": code, **strides, "depthMultiplier": 1, "dilationHFactor": 1, "dilationWFactor": 1}
        tensor = low.build.emit_on(
            "DEPTHWISE_CONV_2D", [source, weight, bias], name, memory, grid, fuses=True, **options
        )
        return Value(low.build, name, shape, codes={CHANNELS_LAST: tensor})

    return Pending(on, real)
