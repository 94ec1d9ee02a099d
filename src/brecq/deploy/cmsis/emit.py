"""The C of each operator: a call of CMSIS-NN, or of a small function of the file's own where it has none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from brecq.deploy.lite.packing import pack_int4
from brecq.deploy.lite.padding import SAME, same
from brecq.deploy.lite.program import Operator, Tensor
from brecq.deploy.simulate.arithmetic import mean_multiplier, multiplier
from brecq.errors import ExportError

RELU = 1


@dataclass
class Source:
    """C while it is written.

    Attributes:
        pointers: what stands for a tensor. constants: array declarations. lines: of the function. used: helpers.
        scratch: bytes that kernels work in, at most. flash: bytes of the constants.
    """

    pointers: dict[Tensor, str]
    constants: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    scratch: int = 0
    flash: int = 0
    _arrays: dict[tuple[str, bytes], str] = field(default_factory=dict)

    def array(self, name: str, kind: str, values: Sequence[int] | np.ndarray) -> str:
        """The name of a constant array; equal ones are stored once."""
        array = np.asarray(values, np.int8 if kind == "int8_t" else np.int32).reshape(-1)
        key = (kind, array.tobytes())
        if key not in self._arrays:
            label = f"{identifier(name)}_{len(self._arrays)}"
            self._arrays[key] = label
            rows = [array[start : start + 24] for start in range(0, len(array), 24)]
            body = ",\n".join("    " + ", ".join(map(str, row)) for row in rows)
            self.constants.append(f"static const {kind} {label}[{len(array)}] = {{\n{body}\n}};\n")
            self.flash += array.nbytes
        return self._arrays[key]

    def helper(self, name: str) -> str:
        self.used.add(name)
        return name


Emitter = Callable[[Source, Operator], None]


def emit(source: Source, operator: Operator) -> None:
    """Write the C of an operator.

    Raises:
        ExportError: there is none.
    """
    if operator.kind not in EMITTERS:
        raise ExportError(
            f"CMSIS-NN: {operator.kind} in {operator.layer or operator.outputs[0].name} has no integer form here; "
            "export to tflite, ONNX or OpenVINO"
        )
    source.lines.append(f"    /* {operator.kind}{f', {operator.layer}' if operator.layer else ''} */")
    EMITTERS[operator.kind](source, operator)


def identifier(name: str) -> str:
    """A C identifier like `name`."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in f"t_{name}")


def _tensors(operator: Operator) -> tuple[list[Tensor], Tensor]:
    return [each for each in operator.inputs if each is not None], operator.outputs[0]


def _clamp(operator: Operator, output: Tensor) -> tuple[int, int]:
    """Bounds of the codes that an operator writes."""
    fused = operator.options.get("fusedActivationFunction", 0)
    return (max(-128, output.zero_point), 127) if fused == RELU else (-128, 127)


def _braces(*values: Any) -> str:
    return "{" + ", ".join(str(value) for value in values) + "}"


def _dims(shape: Sequence[int]) -> str:
    return _braces(*shape)


def _four(shape: Sequence[int]) -> list[int]:
    """A shape as batch, height, width, channels."""
    return [1] * (4 - len(shape)) + list(shape) if len(shape) <= 4 else [1, 1, math.prod(shape[:-1]), shape[-1]]


def _checked(function: str, *arguments: Any) -> str:
    """A call that ends the network where the kernel refuses its arguments."""
    return f"if ({function}({', '.join(map(str, arguments))}) != ARM_CMSIS_NN_SUCCESS) return 1;"


def _plain(source: Source, helper: str, *arguments: Any) -> None:
    """A call of one of the file's own functions."""
    source.lines.append(f"    {source.helper(helper)}({', '.join(map(str, arguments))});")


def _call(source: Source, statements: Sequence[str]) -> None:
    source.lines += ["    {", *(f"        {line}" for line in statements), "    }"]


def _quantization(
    source: Source, operator: Operator, x: Tensor, weights: Tensor, output: Tensor, channels: int
) -> str:
    """Multipliers and shifts of each channel: the declaration of CMSIS-NN's structure."""
    assert weights.quantization is not None
    steps = np.broadcast_to(weights.quantization.scale, (channels,))
    pairs = [multiplier(x.scale * float(step) / output.scale) for step in steps]
    whole, shifts = ([pair[index] for pair in pairs] for index in (0, 1))
    found = [source.array(f"{weights.name}_multiplier", "int32_t", whole)]
    found.append(source.array(f"{weights.name}_shift", "int32_t", shifts))
    return f"const cmsis_nn_per_channel_quant_params quant = {_braces(*(f'(int32_t *){each}' for each in found))};"


def _weights(source: Source, weights: Tensor) -> str:
    assert weights.data is not None
    data = np.frombuffer(pack_int4(weights.data), np.int8) if weights.dtype == "int4" else weights.data
    return source.array(weights.name, "int8_t", data)


def _bias(source: Source, bias: Tensor) -> str:
    assert bias.data is not None
    return source.array(bias.name, "int32_t", bias.data)


def _operands(source: Source, x: Tensor, weights: Tensor, bias: Tensor, output: Tensor) -> list[str]:
    """The arguments of a kernel with weights, from its multipliers on."""
    tensors = ("&in", source.pointers[x]), ("&filter", _weights(source, weights)), ("&bias", _bias(source, bias))
    return ["&quant", *chain(*tensors), "&out", source.pointers[output]]


def _convolution(source: Source, operator: Operator) -> None:
    (x, weights, bias), output = _tensors(operator)
    depthwise = operator.kind == "DEPTHWISE_CONV_2D"
    bits = 4 if weights.dtype == "int4" else 8
    if operator.kind == "FULLY_CONNECTED":  # a 1×1 convolution of its rows: per channel, and at four bits too
        rows = math.prod(x.shape[:-1])
        shape, result = [1, 1, rows, x.shape[-1]], [1, 1, rows, output.shape[-1]]
        filters = [weights.shape[0], 1, 1, weights.shape[1]]
        stride = dilation = [1, 1]
        pads = [0, 0]
    else:
        shape, result, filters = list(x.shape), list(output.shape), list(weights.shape)
        stride = [operator.options["strideH"], operator.options["strideW"]]
        dilation = [operator.options["dilationHFactor"], operator.options["dilationWFactor"]]
        pads = _leading(operator, shape, filters[1:3], stride, dilation)
    low, high = _clamp(operator, output)
    ends = [f"{{{low}, {high}}}"]
    tiles = [f"{{{pair[1]}, {pair[0]}}}" for pair in (stride, pads, dilation)]  # width before height
    offsets = [-x.zero_point, output.zero_point]
    multiple = [operator.options["depthMultiplier"]] if depthwise else []
    kind = "dw_conv" if depthwise else "conv"
    function = f"arm_{'depthwise_conv' if depthwise else 'convolve'}_wrapper_s{bits}"
    channels = result[-1]
    taps = filters[1] * filters[2]
    if depthwise:
        wide = multiple[0] == 1 and dilation == [1, 1]
        source.scratch = max(source.scratch, taps * max(2 * shape[-1], 4 * 124) if wide else 0)
    else:
        source.scratch = max(source.scratch, 4 * (-(-taps * shape[-1] // 16) * 16))
    _call(
        source,
        [
            f"const cmsis_nn_{kind}_params params = {_braces(*offsets, *multiple, *tiles, *ends)};",
            _quantization(source, operator, x, weights, output, channels),
            f"const cmsis_nn_dims in = {_dims(shape)}, filter = {_dims(filters)}, bias = {{1, 1, 1, {channels}}};",
            f"const cmsis_nn_dims out = {_dims(result)};",
            f"if ({function}_get_buffer_size(&params, &in, &filter, &out) > context.size) return 1;",
            _checked(
                function,
                "&context",
                "&params",
                *_operands(source, x, weights, bias, output),
            ),
        ],
    )


def _leading(
    operator: Operator, shape: Sequence[int], taps: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Padding above and to the left; that on the other sides follows from the output's size."""
    if "pads" in operator.options:
        return list(operator.options["pads"])
    if operator.options["padding"] != SAME:
        return [0, 0]
    return [same(*each)[0] for each in zip(shape[1:3], taps, stride, dilation, strict=True)]


def _transposed(source: Source, operator: Operator) -> None:
    (_, weights, x, bias), output = _tensors(operator)
    stride = [operator.options["strideH"], operator.options["strideW"]]
    shape, filters = list(x.shape), list(weights.shape)
    low, high = _clamp(operator, output)
    params = _braces(
        -x.zero_point,
        output.zero_point,
        f"{{{stride[1]}, {stride[0]}}}",
        "{0, 0}",
        "{0, 0}",
        "{1, 1}",
        f"{{{low}, {high}}}",
    )
    # Either of the two ways that the kernel may take, see arm_transpose_conv_get_buffer_sizes_s8.c.
    reverse = max(stride) <= 2 and shape[-1] > 16
    taps = filters[1] * filters[2]
    if reverse:
        first, second = 4 * (-(-taps * shape[-1] // 16) * 16), shape[-1] * taps * filters[0]
    else:
        width = ((shape[2] - 1) * stride[1] + max(filters[2], stride[0])) * output.shape[-1]
        first, second = 4 * width * max(filters[1], stride[0]), 0
    source.scratch = max(source.scratch, _aligned(first) + second)
    _call(
        source,
        [
            f"const cmsis_nn_transpose_conv_params params = {params};",
            _quantization(source, operator, x, weights, output, output.shape[-1]),
            f"const cmsis_nn_dims in = {_dims(shape)}, filter = {_dims(filters)};",
            f"const cmsis_nn_dims bias = {{1, 1, 1, {output.shape[-1]}}};",
            f"const cmsis_nn_dims out = {_dims(output.shape)};",
            f"if (arm_transpose_conv_s8_get_buffer_size(&params, &in, &filter, &out) > {first}) return 1;",
            f"if (arm_transpose_conv_s8_get_reverse_conv_buffer_size(&params, &in, &filter) > {second}) return 1;",
            f"const cmsis_nn_context reverse = {{(int8_t *)context.buf + {_aligned(first)}, {second}}};",
            _checked(
                "arm_transpose_conv_wrapper_s8",
                "&context",
                "&reverse",
                "&params",
                *_operands(source, x, weights, bias, output),
            ),
        ],
    )


def _aligned(size: int) -> int:
    return -(-size // 16) * 16


def _pool(source: Source, operator: Operator) -> None:
    (x,), output = _tensors(operator)
    stride = [operator.options["strideH"], operator.options["strideW"]]
    taps = [operator.options["filterHeight"], operator.options["filterWidth"]]
    pads = _leading(operator, x.shape, taps, stride, [1, 1])
    _call(
        source,
        [
            f"const cmsis_nn_pool_params params = {_braces(_dims(stride[::-1]), _dims(pads[::-1]), '{-128, 127}')};",
            f"const cmsis_nn_dims in = {_dims(x.shape)}, filter = {_dims([1, *taps, 1])};",
            f"const cmsis_nn_dims out = {_dims(output.shape)};",
            _checked(
                "arm_max_pool_s8",
                "&context",
                "&params",
                "&in",
                source.pointers[x],
                "&filter",
                "&out",
                source.pointers[output],
            ),
        ],
    )


def _pad(source: Source, operator: Operator) -> None:
    (x, amounts, *fill), output = _tensors(operator)
    assert amounts.data is not None
    value = x.zero_point if not fill or fill[0].data is None else int(fill[0].data[0])
    missing = 4 - len(x.shape)
    sides = [[0, 0]] * missing + amounts.data.tolist()
    before, after = ([each[side] for each in sides] for side in (0, 1))
    _call(
        source,
        [
            f"const cmsis_nn_dims in = {_dims(_four(x.shape))}, before = {_dims(before)}, after = {_dims(after)};",
            _checked("arm_pad_s8", source.pointers[x], source.pointers[output], value, "&in", "&before", "&after"),
        ],
    )


def _blocks(operator: Operator, a: Tensor, b: Tensor) -> tuple[int, int, int, int]:
    """How often a kernel is called, on how many elements, and how far each operand moves on in between."""
    if a.shape == b.shape:
        return 1, math.prod(a.shape), 0, 0
    whole, part = (a, b) if math.prod(a.shape) >= math.prod(b.shape) else (b, a)
    depth = math.prod(part.shape)
    if part.shape[-1] != depth or whole.shape[-1] != depth:
        raise ExportError(
            f"CMSIS-NN: {operator.kind} in {operator.layer or operator.outputs[0].name} broadcasts "
            f"{part.shape} to {whole.shape}, and only one value a channel is possible; export to tflite or ONNX"
        )
    return math.prod(whole.shape) // depth, depth, depth if whole is a else 0, depth if whole is b else 0


def _add(source: Source, operator: Operator) -> None:
    (a, b), output = _tensors(operator)
    count, block, step_a, step_b = _blocks(operator, a, b)
    twice = 2 * max(a.scale, b.scale)
    first, second = multiplier(a.scale / twice), multiplier(b.scale / twice)
    total = multiplier(twice / ((1 << 20) * output.scale))
    low, high = _clamp(operator, output)
    _call(
        source,
        [
            f"for (int32_t i = 0; i < {count}; i++)",
            "    "
            + _checked(
                "arm_elementwise_add_s8",
                f"{source.pointers[a]} + i * {step_a}",
                f"{source.pointers[b]} + i * {step_b}",
                -a.zero_point,
                *first,
                -b.zero_point,
                *second,
                20,
                f"{source.pointers[output]} + i * {block}",
                output.zero_point,
                *total,
                low,
                high,
                block,
            ),
        ],
    )


def _multiply(source: Source, operator: Operator) -> None:
    (a, b), output = _tensors(operator)
    count, block, step_a, step_b = _blocks(operator, a, b)
    whole, shift = multiplier(a.scale * b.scale / output.scale)
    low, high = _clamp(operator, output)
    _call(
        source,
        [
            f"for (int32_t i = 0; i < {count}; i++)",
            "    "
            + _checked(
                "arm_elementwise_mul_s8",
                f"{source.pointers[a]} + i * {step_a}",
                f"{source.pointers[b]} + i * {step_b}",
                -a.zero_point,
                -b.zero_point,
                f"{source.pointers[output]} + i * {block}",
                output.zero_point,
                whole,
                shift,
                low,
                high,
                block,
            ),
        ],
    )


def _mean(source: Source, operator: Operator) -> None:
    (x, axes), output = _tensors(operator)
    assert axes.data is not None
    if axes.data.tolist() != [1, 2] or len(x.shape) != 4:
        raise ExportError(
            f"CMSIS-NN: {operator.layer or output.name} takes a mean over something else than height and width; "
            "export to tflite or ONNX"
        )
    batch, height, width, channels = x.shape
    whole, shift = mean_multiplier(x.scale / output.scale, height * width)
    _plain(
        source, "brecq_mean", source.pointers[x], source.pointers[output], batch, height * width, channels,
        x.zero_point, output.zero_point, whole, shift,
    )  # fmt: skip


def _requantize(source: Source, operator: Operator) -> None:
    (x,), output = _tensors(operator)
    whole, shift = multiplier(x.scale / output.scale)
    ends = source.pointers[x], source.pointers[output]
    _plain(source, "brecq_requantize", *ends, math.prod(x.shape), x.zero_point, output.zero_point, whole, shift)


def _bound(source: Source, operator: Operator) -> None:
    (x, limit), output = _tensors(operator)
    assert limit.data is not None
    bound = int(limit.data.reshape(-1)[0])
    low, high = (bound, 127) if operator.kind == "MAXIMUM" else (-128, bound)
    _plain(source, "brecq_clamp", source.pointers[x], source.pointers[output], math.prod(x.shape), low, high)


def _look_up(source: Source, operator: Operator) -> None:
    (x, table), output = _tensors(operator)
    assert table.data is not None
    values = source.array(f"{output.name}_table", "int8_t", table.data)
    _plain(source, "brecq_look_up", source.pointers[x], source.pointers[output], math.prod(x.shape), values)


def _concatenate(source: Source, operator: Operator) -> None:
    parts, output = _tensors(operator)
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
    _plain(source, "brecq_copy", f"{source.pointers[x]} + {start}", source.pointers[output], lengths, strides)


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]


def _data(tensor: Tensor) -> list[int]:
    assert tensor.data is not None
    found: list[int] = tensor.data.reshape(-1).tolist()
    return found


def _transpose(source: Source, operator: Operator) -> None:
    (x, order), output = _tensors(operator)
    steps = _strides(x.shape)
    _copy(source, x, output, [steps[dim] for dim in _data(order)])


def _slice(source: Source, operator: Operator) -> None:
    (x, begin, *rest), output = _tensors(operator)
    steps = _strides(x.shape)
    start = sum(a * b for a, b in zip(_data(begin), steps, strict=True))
    jumps = _data(rest[1]) if operator.kind == "STRIDED_SLICE" else [1] * len(steps)
    _copy(source, x, output, [a * b for a, b in zip(steps, jumps, strict=True)], start)


def _tile(source: Source, operator: Operator) -> None:
    (x, times), output = _tensors(operator)
    steps, shape, strides = _strides(x.shape), [], []
    for length, count, step in zip(x.shape, _data(times), steps, strict=True):
        if count > 1:
            shape.append(count)
            strides.append(0)
        shape.append(length)
        strides.append(step)
    _copy(source, x, output, strides, 0, shape)


def _flip(source: Source, operator: Operator) -> None:
    (x, axis), output = _tensors(operator)
    steps = _strides(x.shape)
    (dim,) = _data(axis)
    start = (x.shape[dim] - 1) * steps[dim]
    _copy(source, x, output, [-step if each == dim else step for each, step in enumerate(steps)], start)


def _resize(source: Source, operator: Operator) -> None:
    (x, _), output = _tensors(operator)
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


def _reshape(source: Source, operator: Operator) -> None:
    (x, *_), output = _tensors(operator)
    if source.pointers[x] != source.pointers[output]:
        source.lines.append(f"    memcpy({source.pointers[output]}, {source.pointers[x]}, {math.prod(x.shape)});")


EMITTERS: dict[str, Emitter] = {
    "CONV_2D": _convolution, "DEPTHWISE_CONV_2D": _convolution, "FULLY_CONNECTED": _convolution,
    "TRANSPOSE_CONV": _transposed, "MAX_POOL_2D": _pool, "PAD": _pad, "PADV2": _pad, "ADD": _add, "MUL": _multiply,
    "MEAN": _mean, "QUANTIZE": _requantize, "MAXIMUM": _bound, "MINIMUM": _bound, "LOOKUP": _look_up,
    "CONCATENATION": _concatenate, "TRANSPOSE": _transpose, "SLICE": _slice, "STRIDED_SLICE": _slice, "TILE": _tile,
    "REVERSE_V2": _flip, "RESIZE_NEAREST_NEIGHBOR": _resize, "RESHAPE": _reshape,
}  # fmt: skip
"""What writes the C of an operator, by its name in the schema of LiteRT."""
