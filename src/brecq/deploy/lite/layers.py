"""Convolutions, transposed convolutions and linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from brecq.deploy.lite.grids import CodeGrid
from brecq.deploy.lite.lowering import Lowering, lowers, numpy
from brecq.deploy.lite.moves import view, zero_padding
from brecq.deploy.lite.padding import VALID, Sides, pair, pooling, windows
from brecq.deploy.lite.program import Quantization, Tensor, constant, no_bias
from brecq.deploy.lite.values import CHANNELS_LAST, Pending, Value, arranged, identity
from brecq.deploy.simulate.kernels import fits_int4
from brecq.deploy.simulate.model import layer_of
from brecq.deploy.simulate.values import Constant
from brecq.deploy.simulate.wide import has_int32_bias
from brecq.graph import ops

aten = ops.aten


@dataclass(frozen=True)
class Geometry:
    """How a convolution's window lies and moves; height before width."""

    stride: list[int]
    pads: list[Sides]
    dilation: list[int]
    groups: int


@lowers(aten.linear.default)
def linear(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = low.value(args[0])
    weight, bias = _parts(low, node, x)
    shape = (*x.shape[:-1], weight.numbers.shape[0])
    order = identity(x.rank)
    options: dict[str, Any] = {"keepNumDims": x.rank != 2}
    name = _weight_name(node)
    weights = weight.tensor(low, name, weight.numbers, 0, int4=True)

    def on(grid: CodeGrid, called: str) -> Value:
        inputs = [x.code(order), weights, bias]
        codes = low.build.emit_on("FULLY_CONNECTED", inputs, called, shape, grid, fuses=True, **options)
        return Value(low.build, called, shape, codes={order: codes})

    def real() -> Value:
        called = low.build.free(node.name)
        tensor = low.build.emit("FULLY_CONNECTED", [x.real(order), weights, bias], called, shape, **options)
        return Value(low.build, called, shape, reals={order: tensor})

    return _pending(low, node, weight, on, real)


@lowers(aten.conv2d.default, aten.conv2d.padding, aten.conv1d.default, aten.conv1d.padding)
def convolution(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, around = _padded(low, node)
    flat = x.rank == 3
    weight, bias = _parts(low, node, x)
    kernel = weight.numbers
    if flat:
        kernel = kernel[:, :, None]
        x = view(low, x, (x.shape[0], x.shape[1], 1, x.shape[2]))
    at = _geometry(args, kernel.shape[2:], flat, around)
    size = windows(x.shape[2:], kernel.shape[2:], at.stride, at.pads, at.dilation)
    shape = (x.shape[0], kernel.shape[0], *size)
    memory = arranged(shape, CHANNELS_LAST)
    is_depthwise = at.groups == x.shape[1] and at.groups > 1
    options: dict[str, Any] = {
        "strideH": at.stride[0], "strideW": at.stride[1],
        "dilationHFactor": at.dilation[0], "dilationWFactor": at.dilation[1],
    }  # fmt: skip
    if is_depthwise:
        kind, options["depthMultiplier"] = "DEPTHWISE_CONV_2D", kernel.shape[0] // at.groups
        is_plain = options["depthMultiplier"] == 1 and at.dilation == [1, 1]
        narrow = (low.runtime.odd_int4 or is_plain or at.groups % 2 == 0) and not x.is_wide
        weights = weight.tensor(low, _weight_name(node), kernel.transpose(1, 2, 3, 0), 3, narrow)
    else:
        kind, narrow = "CONV_2D", at.groups == 1 or low.runtime.grouped_int4
        weights = weight.tensor(low, _weight_name(node), kernel.transpose(0, 2, 3, 1), 0, narrow)

    def emit_padded(source: Tensor) -> tuple[Tensor, dict[str, Any]]:
        source, code = pooling(low, source, kernel.shape[2:], at.stride, at.pads, at.dilation, 0)
        return source, {**options, "padding": code}

    def back(value: Value) -> Value:
        return view(low, value, (shape[0], shape[1], shape[3])) if flat else value

    def on(grid: CodeGrid, called: str) -> Value:
        source, chosen = emit_padded(x.code(CHANNELS_LAST))
        codes = low.build.emit_on(kind, [source, weights, bias], called, memory, grid, fuses=True, **chosen)
        return back(Value(low.build, called, shape, codes={CHANNELS_LAST: codes}))

    def real() -> Value:
        called = low.build.free(node.name)
        source, chosen = emit_padded(x.real(CHANNELS_LAST))
        tensor = low.build.emit(kind, [source, weights, bias], called, memory, **chosen)
        return back(Value(low.build, called, shape, reals={CHANNELS_LAST: tensor}))

    return _pending(low, node, weight, on, real)


@lowers(aten.conv_transpose2d.input, aten.conv_transpose1d.default)
def transposed(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = low.value(args[0])
    weight, bias = _parts(low, node, x)
    kernel = weight.numbers  # [in, out / groups, height, width]
    stride, padding, more, groups, dilation = (*args[3:], *[None] * 5)[:5]
    flat = x.rank == 3
    stride, padding, more = _both(stride, 1, flat), _both(padding, 0, flat), _both(more, 0, flat)
    if flat:
        kernel, x = kernel[:, :, None], view(low, x, (x.shape[0], x.shape[1], 1, x.shape[2]))
    if groups not in (None, 1):
        low.refuse(node, f"is transposed in {groups} groups")
    if pair(dilation or 1) != [1, 1]:
        low.refuse(node, "is transposed and dilated")
    full = [
        (length - 1) * step + taps for length, step, taps in zip(x.shape[2:], stride, kernel.shape[2:], strict=True)
    ]
    size = [length - 2 * cut + extra for length, cut, extra in zip(full, padding, more, strict=True)]
    if any(extra > cut for cut, extra in zip(padding, more, strict=True)):
        low.refuse(node, "is transposed with more output padding than padding")
    shape, channels = (x.shape[0], kernel.shape[1], *size), kernel.shape[1]
    memory = arranged(shape, CHANNELS_LAST)
    weights = weight.tensor(low, _weight_name(node), kernel.transpose(1, 2, 3, 0), 0, int4=False)
    whole = (x.shape[0], *full, channels)
    start = [0, *padding, 0]
    options: dict[str, Any] = {"padding": VALID, "strideH": stride[0], "strideW": stride[1]}

    def cropped(tensor: Tensor, called: str) -> Tensor:
        if tuple(tensor.shape) == memory:
            return tensor
        inputs = [tensor, constant("begin", start), constant("size", list(memory))]
        return low.build.emit("SLICE", inputs, called, memory, tensor)

    def back(value: Value) -> Value:
        return view(low, value, (shape[0], shape[1], shape[3])) if flat else value

    def on(grid: CodeGrid, called: str) -> Value:
        inputs = [constant("output_shape", list(whole)), weights, x.code(CHANNELS_LAST), bias]
        inner = called if whole == memory else f"{called}_whole"
        tensor = low.build.emit_on("TRANSPOSE_CONV", inputs, inner, whole, grid, fuses=True, **options)
        return back(Value(low.build, called, shape, codes={CHANNELS_LAST: cropped(tensor, called)}))

    def real() -> Value:
        called = low.build.free(node.name)
        inputs = [constant("output_shape", list(whole)), weights, x.real(CHANNELS_LAST), bias]
        tensor = low.build.emit("TRANSPOSE_CONV", inputs, f"{called}_whole", whole, **options)
        return back(Value(low.build, called, shape, reals={CHANNELS_LAST: cropped(tensor, called)}))

    return _pending(low, node, weight, on, real)


@dataclass(frozen=True)
class _Weight:
    """Integers with zero points subtracted and their scales, or float numbers; in the layout of PyTorch."""

    numbers: np.ndarray
    scale: np.ndarray | None

    def tensor(self, low: Lowering, name: str, arranged: np.ndarray, axis: int, int4: bool) -> Tensor:
        data = np.ascontiguousarray(arranged)
        if self.scale is None:
            return Tensor(name, data.shape, "float32", None, data.astype(np.float32))
        dtype = "int4" if int4 and fits_int4(torch.from_numpy(data)) else "int8"
        quantization = Quantization(self.scale, 0, axis if len(self.scale) > 1 else 0)
        return Tensor(name, data.shape, dtype, quantization, data.astype(np.int8))


def _parts(low: Lowering, node: Node, x: Value) -> tuple[_Weight, Tensor]:
    """Weight and bias of a layer: integers if it reads codes."""
    parts: list[Any] = [*node.args, None][1:3]
    weight, bias = parts
    stored = low.stored(weight) if x.is_quantized else None
    if stored is not None and (bias is None or low.stored(bias) is not None):
        _refuse_wide(low, node, stored)
        scale = numpy(stored.scale).reshape(-1)
        found = _Weight(numpy(stored.integers), scale)
        return found, _bias(low, node, x, stored, bias)
    numbers = low.env[weight]
    if numbers.dtype != torch.float32 or weight in low.computed:
        low.refuse(node, "computes its weight")
    data = np.zeros(_channels(low, node), np.float32) if bias is None else numpy(low.env[bias])
    name = f"zeros{len(data)}" if bias is None else _target(bias)
    return _Weight(numpy(numbers), None), Tensor(name, data.shape, "float32", None, data)


def _refuse_wide(low: Lowering, node: Node, stored: Constant) -> None:
    if int(stored.integers.abs().max()) > 127:
        low.refuse(node, "has asymmetric 8-bit weights; quantize with --weight-scheme symmetric (or auto)")


def _bias(low: Lowering, node: Node, x: Value, weight: Constant, source: Any) -> Tensor:
    """The stored bias of an integer layer; zeros where it has none, as the runtimes' convolutions insist on one."""
    stored = None if source is None else low.stored(source)
    dtype = _bias_type(node, x, weight, stored)
    if stored is not None:
        quantization = Quantization(numpy(stored.scale).reshape(-1))
        data = numpy(stored.integers).astype(dtype)
        return Tensor(_target(source), data.shape, dtype, quantization, data)
    scale = numpy(weight.scale).reshape(-1) * np.float32(x.held().scale)
    return no_bias(_channels(low, node), scale, dtype)


def _bias_type(node: Node, x: Value, weight: Constant, bias: Constant | None) -> str:
    """Beside int16 codes a bias has the bits that the sums are to have; see `brecq.deploy.simulate.wide`."""
    if not x.is_wide or has_int32_bias(layer_of(node, weight, bias)):
        return "int32"
    return "int64"


def _channels(low: Lowering, node: Node) -> int:
    return int(low.env[node].shape[-1 if ops.kind(node) == "linear" else 1])


def _pending(low: Lowering, node: Node, weight: _Weight, on: Any, real: Any) -> Any:
    if weight.scale is None:
        return real()

    def refuse() -> Value:
        low.refuse(node, "writes float numbers from integers")
        raise AssertionError

    return Pending(on, refuse)


def _padded(low: Lowering, node: Node) -> tuple[Value, list[Sides]]:
    """The input of a convolution, and the zeros around it in front of the convolution."""
    source: Any = node.args[0]
    if source.target in (aten.pad.default, aten.constant_pad_nd.default):
        sides = zero_padding(source, source.args)
        if sides is not None and len(sides) <= 2 and all(amount >= 0 for each in sides for amount in each):
            return low.value(source.args[0]), [(0, 0)] * (2 - len(sides)) + sides
    return low.value(source), [(0, 0), (0, 0)]


def _geometry(args: tuple[Any, ...], kernel: tuple[int, ...], flat: bool, around: list[Sides]) -> Geometry:
    """Of a convolution with zeros `around` its input already."""
    stride, padding, dilation, groups = (*args[3:], *[None] * 4)[:4]

    dilations = _both(dilation, 1, flat)
    if isinstance(padding, str):
        total = [
            spread * (taps - 1) if padding == "same" else 0 for spread, taps in zip(dilations, kernel, strict=True)
        ]
        pads = [(each // 2, each - each // 2) for each in total]
    else:
        pads = [(each, each) for each in _both(padding, 0, flat)]
    pads = [(a + c, b + d) for (a, b), (c, d) in zip(pads, around, strict=True)]
    return Geometry(_both(stride, 1, flat), pads, dilations, groups or 1)


def _both(value: Any, neutral: int, flat: bool) -> list[int]:
    """For height and width; a signal has a height of 1."""
    if value is None or value == []:
        return [neutral, neutral]
    return [neutral, *pair(value)[:1]] if flat else pair(value)


def _weight_name(node: Node) -> str:
    return _target(node.args[1])


def _target(node: Any) -> str:
    """The name of the constant that a node reads, directly or dequantized."""
    while node.op != "get_attr" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return str(node.target)
