"""The C of what moves codes and computes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from brecq.deploy.cmsis.emit.source import Source, call, checked, dims, four, plain, tensors
from brecq.deploy.lite.program import Operator, Tensor
from brecq.errors import ExportError


def pad(source: Source, operator: Operator) -> None:
    (x, amounts, *fill), output = tensors(operator)
    assert amounts.data is not None
    value = x.zero_point if not fill or fill[0].data is None else int(fill[0].data[0])
    missing = 4 - len(x.shape)
    sides = [[0, 0]] * missing + amounts.data.tolist()
    before, after = ([each[side] for each in sides] for side in (0, 1))
    call(
        source,
        [
            f"const cmsis_nn_dims in = {dims(four(x.shape))}, before = {dims(before)}, after = {dims(after)};",
            checked("arm_pad_s8", source.pointers[x], source.pointers[output], value, "&in", "&before", "&after"),
        ],
    )


def concatenate(source: Source, operator: Operator) -> None:
    parts, output = tensors(operator)
    axis = operator.options["axis"]
    outer, offset = math.prod(output.shape[:axis]), 0
    row = math.prod(output.shape[axis:])
    for part in parts:
        size = math.prod(part.shape[axis:])
        source.lines.append(
            f"    for (int32_t i = 0; i < {outer}; i++) memcpy({source.pointers[output]} + i * {row} + {offset}, "
            f"{source.pointers[part]} + i * {size}, {size});"
        )
        offset += size


def _copy(
    source: Source, x: Tensor, output: Tensor, steps: Sequence[int], start: int = 0, shape: Sequence[int] | None = None
) -> None:
    """Element by element: how far the source moves on along each dimension of the output."""
    sizes = list(output.shape if shape is None else shape)
    missing = 6 - len(sizes)
    if missing < 0:
        raise ExportError(f"CMSIS-NN: {output.name} has {len(sizes)} dimensions to move, at most 6 are possible")
    lengths = source.array("shape", "int32_t", [1] * missing + sizes)
    strides = source.array("strides", "int32_t", [0] * missing + list(steps))
    plain(source, "brecq_copy", f"{source.pointers[x]} + {start}", source.pointers[output], lengths, strides)


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]


def _data(tensor: Tensor) -> list[int]:
    assert tensor.data is not None
    found: list[int] = tensor.data.reshape(-1).tolist()
    return found


def transpose(source: Source, operator: Operator) -> None:
    (x, order), output = tensors(operator)
    steps = _strides(x.shape)
    _copy(source, x, output, [steps[dim] for dim in _data(order)])


def slice_(source: Source, operator: Operator) -> None:
    (x, begin, *rest), output = tensors(operator)
    steps = _strides(x.shape)
    start = sum(a * b for a, b in zip(_data(begin), steps, strict=True))
    jumps = _data(rest[1]) if operator.kind == "STRIDED_SLICE" else [1] * len(steps)
    _copy(source, x, output, [a * b for a, b in zip(steps, jumps, strict=True)], start)


def tile(source: Source, operator: Operator) -> None:
    (x, times), output = tensors(operator)
    steps, shape, strides = _strides(x.shape), [], []
    for length, count, step in zip(x.shape, _data(times), steps, strict=True):
        if count > 1:
            shape.append(count)
            strides.append(0)
        shape.append(length)
        strides.append(step)
    _copy(source, x, output, strides, 0, shape)


def flip(source: Source, operator: Operator) -> None:
    (x, axis), output = tensors(operator)
    steps = _strides(x.shape)
    (dim,) = _data(axis)
    start = (x.shape[dim] - 1) * steps[dim]
    _copy(source, x, output, [-step if each == dim else step for each, step in enumerate(steps)], start)


def resize(source: Source, operator: Operator) -> None:
    (x, _), output = tensors(operator)
    batch, height, width, channels = x.shape
    rows, columns = output.shape[1] / height, output.shape[2] / width
    if not rows.is_integer() or not columns.is_integer():
        raise ExportError(
            f"CMSIS-NN: {operator.layer or output.name} enlarges {height}x{width} to "
            f"{output.shape[1]}x{output.shape[2]}, which is not a whole factor; export to tflite or ONNX"
        )
    a, b, c, d = _strides(x.shape)
    shape = [batch, height, int(rows), width, int(columns), channels]
    _copy(source, x, output, [a, b, 0, c, 0, d], 0, shape)


def reshape(source: Source, operator: Operator) -> None:
    (x, *_), output = tensors(operator)
    if source.pointers[x] != source.pointers[output]:
        source.lines.append(f"    memcpy({source.pointers[output]}, {source.pointers[x]}, {math.prod(x.shape)});")
