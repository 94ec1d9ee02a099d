"""Operators that move elements: codes stay codes. Permuting moves nothing until a reader needs an order in memory."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from brecq.deploy.lite.grids import ENDS
from brecq.deploy.lite.lowering import Lowering, lowers
from brecq.deploy.lite.padding import Sides, pair, pooling, windows
from brecq.deploy.lite.program import Tensor, constant
from brecq.deploy.lite.values import (
    CHANNELS_LAST,
    Layout,
    Value,
    arranged,
    gathered,
    identity,
    regroup,
    reshaped,
    same_order,
)
from brecq.graph import ops

aten = ops.aten

Arguments = tuple[Any, ...]
Options = dict[str, Any]


def apart(
    low: Lowering, value: Value, move: Callable[[Tensor, Layout], tuple[Tensor, Layout]], shape: Sequence[int]
) -> Value:
    """A moved value: its codes where there are any, otherwise its numbers."""
    layout = value.layouts[0]
    tensor, order = move(value.either(layout), layout)
    name = low.build.free(tensor.name)
    found = {order: tensor}
    if value.is_quantized:
        return Value(low.build, name, tuple(shape), codes=found)
    return Value(low.build, name, tuple(shape), reals=found)


def view(low: Lowering, value: Value, shape: Sequence[int]) -> Value:
    """A value read with another shape."""
    shape = tuple(shape)
    if shape == value.shape:
        return value
    for layout in value.layouts:
        order = regroup(value.shape, shape, layout)
        if order is None and same_order(value.shape, layout, identity(value.rank)):
            order = identity(len(shape))
        if order is not None:
            break
    else:
        layout = gathered(value.shape, shape, value.layouts[0])
        order = regroup(value.shape, shape, layout)
    assert order is not None
    held = {layout: value.either(layout)}
    source = Value(low.build, value.name, value.shape, *([held] if value.is_quantized else [{}, held]))
    memory = arranged(shape, order)
    return apart(low, source, lambda tensor, _: (reshaped(low.build, tensor, memory), order), shape)


@lowers(
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.reshape_as.default, aten.view_as.default,
)  # fmt: skip
def reshape(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    return view(low, low.value(args[0]), low.env[node].shape)


@lowers(
    aten.contiguous.default, aten.clone.default, aten.alias.default, aten.detach.default, aten.dropout.default,
    aten._to_copy.default, aten.to.dtype,
)  # fmt: skip
def same(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    if not low.env[node].is_floating_point():
        low.refuse(node, f"converts to {low.env[node].dtype}")
    return low.value(args[0])


@lowers(aten.permute.default, aten.transpose.int, aten.t.default)
def permute(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = low.value(args[0])
    if node.target is aten.permute.default:
        dims = [dim % x.rank for dim in args[1]]
    else:
        dims = list(range(x.rank))
        first, second = (dim % x.rank for dim in args[1:3]) if node.target is aten.transpose.int else (0, x.rank - 1)
        dims[first], dims[second] = dims[second], dims[first]
    return permuted(low, x, dims)


def permuted(low: Lowering, x: Value, dims: Sequence[int]) -> Value:
    """The value whose dimension i is dimension dims[i] of `x`; nothing moves."""
    where = {dim: position for position, dim in enumerate(dims)}
    shape = tuple(x.shape[dim] for dim in dims)
    codes, reals = (
        {tuple(where[dim] for dim in layout): tensor for layout, tensor in held.items()} for held in (x.codes, x.reals)
    )
    return Value(low.build, x.name, shape, codes, reals)


@lowers(aten.slice.Tensor, aten.narrow.default)
def cut(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = low.value(args[0])
    dim, start, end, step = (*args[1:], *[None] * 4)[:4]
    dim, start = (dim or 0) % x.rank, 0 if start is None else int(start)
    length = x.shape[dim]
    if node.target is aten.narrow.default:
        end, step = start + int(end), 1
    start, end, step = slice(start, None if end is None else int(end), step or 1).indices(length)
    return sliced(low, x, dim, start, end, step)


def sliced(low: Lowering, x: Value, dim: int, start: int, end: int, step: int = 1) -> Value:
    """Some of the indices along a dimension."""
    shape = list(x.shape)
    shape[dim] = len(range(start, end, step))
    if tuple(shape) == x.shape:
        return x

    def move(tensor: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        axis = layout.index(dim)
        begins, ends, steps = [0] * x.rank, list(tensor.shape), [1] * x.rank
        begins[axis], ends[axis], steps[axis] = start, end, step
        inputs = [tensor, *(constant("slice", values) for values in (begins, ends, steps))]
        return low.build.emit("STRIDED_SLICE", inputs, f"{tensor.name}_slice", arranged(shape, layout), tensor), layout

    return apart(low, x, move, shape)


@lowers(aten.select.int)
def select(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = low.value(args[0])
    dim, index = args[1] % x.rank, args[2] % x.shape[args[1] % x.rank]
    return view(low, sliced(low, x, dim, index, index + 1), (*x.shape[:dim], *x.shape[dim + 1 :]))


@lowers(aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)
def split(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> list[Value]:
    x = low.value(args[0])
    unbinds = node.target is aten.unbind.int
    dim = (
        (args[1] if len(args) > 1 else 0) if unbinds else (args[2] if len(args) > 2 else kwargs.get("dim", 0))
    ) % x.rank
    parts, start = [], 0
    for part in low.env[node]:
        size = 1 if unbinds else part.shape[dim]
        parts.append(view(low, sliced(low, x, dim, start, start + size), part.shape))
        start += size
    return parts


@lowers(operator.getitem)
def take(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Any:
    return args[0][args[1]]


@lowers(aten.expand.default, aten.expand_as.default, aten.repeat.default)
def repeat(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x, shape = low.value(args[0]), tuple(low.env[node].shape)
    x = view(low, x, (1,) * (len(shape) - x.rank) + x.shape)
    if shape == x.shape:
        return x
    times = [after // before for after, before in zip(shape, x.shape, strict=True)]

    def move(tensor: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        inputs = [tensor, constant("times", list(arranged(times, layout)))]
        return low.build.emit("TILE", inputs, f"{tensor.name}_tiled", arranged(shape, layout), tensor), layout

    return apart(low, x, move, shape)


@lowers(aten.flip.default)
def flip(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = low.value(args[0])

    def move(tensor: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        for dim in args[1]:
            inputs = [tensor, constant("axis", [layout.index(dim % x.rank)])]
            tensor = low.build.emit("REVERSE_V2", inputs, f"{tensor.name}_flipped", tensor.shape, tensor)
        return tensor, layout

    return apart(low, x, move, x.shape)


@lowers(aten.channel_shuffle.default)
def shuffle(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x, groups = low.value(args[0]), int(args[1])
    batch, channels, *rest = x.shape
    apart_ = view(low, x, (batch, groups, channels // groups, *rest))
    return view(low, permuted(low, apart_, [0, 2, 1, *range(3, apart_.rank)]), x.shape)


@lowers(aten.pixel_shuffle.default)
def pixels(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x, factor = low.value(args[0]), int(args[1])
    batch, channels, height, width = x.shape
    spread = view(low, x, (batch, channels // factor**2, factor, factor, height, width))
    return view(low, permuted(low, spread, [0, 1, 4, 2, 5, 3]), low.env[node].shape)


@lowers(aten.pixel_unshuffle.default)
def unpixels(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x, factor = low.value(args[0]), int(args[1])
    batch, channels, height, width = x.shape
    spread = view(low, x, (batch, channels, height // factor, factor, width // factor, factor))
    return view(low, permuted(low, spread, [0, 1, 3, 5, 2, 4]), low.env[node].shape)


@lowers(aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default)
def enlarge(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    return resized(low, node, low.value(args[0]), "RESIZE_NEAREST_NEIGHBOR", {})


def resized(low: Lowering, node: Node, x: Value, kind: str, options: Options) -> Value:
    """Height and width by one of the schema's ways."""
    shape = tuple(low.env[node].shape)
    size = constant("size", list(shape[2:]))
    memory = arranged(shape, CHANNELS_LAST)
    is_moved = kind == "RESIZE_NEAREST_NEIGHBOR" and x.is_quantized
    source = x.code(CHANNELS_LAST) if is_moved else x.real(CHANNELS_LAST)
    tensor = low.build.emit(kind, [source, size], f"{source.name}_resized", memory, source, **options)
    held = {CHANNELS_LAST: tensor}
    return Value(low.build, tensor.name, shape, held if is_moved else {}, {} if is_moved else held)


@lowers(aten.pad.default, aten.constant_pad_nd.default)
def pad(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = low.value(args[0])
    sides = zero_padding(node, args)
    mode, fill = ops.padding(node.target, node.args[1:])
    if sides is None and mode != "constant":
        low.refuse(node, f"pads by {mode}")
    sides = ops.sides(args[1])
    if any(amount < 0 for each in sides for amount in each):
        for dim, (before, after) in enumerate(sides, x.rank - len(sides)):
            x = sliced(low, x, dim, max(-before, 0), x.shape[dim] - max(-after, 0))
        sides = [(max(before, 0), max(after, 0)) for before, after in sides]
    shape = tuple(low.env[node].shape)
    around_all = [(0, 0)] * (x.rank - len(sides)) + sides

    def move(tensor: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        amounts = constant("pads", np.array([around_all[dim] for dim in layout], np.int32))
        if fill:  # of numbers: it is on no grid
            inputs = [tensor, amounts, Tensor(f"{fill:g}", (1,), "float32", None, np.array([fill], np.float32))]
            return low.build.emit("PADV2", inputs, f"{tensor.name}_padded", arranged(shape, layout)), layout
        return low.build.emit(
            "PAD", [tensor, amounts], f"{tensor.name}_padded", arranged(shape, layout), tensor
        ), layout

    if fill:
        x = Value(low.build, x.name, x.shape, reals={x.layouts[0]: x.real(x.layouts[0])})
    return apart(low, x, move, shape)


def zero_padding(node: Node, args: Arguments) -> list[Sides] | None:
    """(before, after) for each of the last dimensions, in order; `None` if something else than zeros is added."""
    if ops.padding(node.target, args[1:]) != ("constant", 0):
        return None
    return ops.sides(args[1])


@lowers(aten.max_pool2d.default, aten.max_pool1d.default)
def largest(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = low.value(args[0])
    size, stride, padding, dilation, ceil = (*args[1:], *[None] * 5)[:5]
    flat = x.rank == 3

    def both(value: Any, neutral: int) -> list[int]:
        return [neutral, *pair(value)[:1]] if flat else pair(value)

    if any(each != 1 for each in pair(dilation or 1)):
        low.refuse(node, "takes maxima of dilated windows")
    kernel = both(size, 1)
    steps, pads = both(stride, 1) if stride else kernel, [(each, each) for each in both(padding or 0, 0)]
    if flat:
        x = view(low, x, (x.shape[0], x.shape[1], 1, x.shape[2]))
    if ceil:
        wanted = low.env[node].shape[-1:] if flat else low.env[node].shape[2:]
        lengths = [1, *wanted] if flat else list(wanted)
        pads = [
            (before, max(after, (count - 1) * step + taps - length - before))
            for (before, after), count, step, taps, length in zip(
                pads, lengths, steps, kernel, x.shape[2:], strict=True
            )
        ]
    shape = (*x.shape[:2], *windows(x.shape[2:], kernel, steps, pads, [1, 1]))
    source = x.either(CHANNELS_LAST)
    lowest = ENDS[source.dtype][0] if x.is_quantized else float(np.finfo(np.float32).min)
    source, code = pooling(low, source, kernel, steps, pads, [1, 1], lowest)
    options = {"filterHeight": kernel[0], "filterWidth": kernel[1], "strideH": steps[0], "strideW": steps[1]}
    memory = arranged(shape, CHANNELS_LAST)
    tensor = low.build.emit("MAX_POOL_2D", [source], f"{node.name}", memory, source, padding=code, **options)
    held = {CHANNELS_LAST: tensor}
    value = Value(low.build, tensor.name, shape, held if x.is_quantized else {}, {} if x.is_quantized else held)
    return view(low, value, low.env[node].shape)
