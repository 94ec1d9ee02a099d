"""The C of what has weights: convolutions and fully connected layers."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np

from brecq.deploy.cmsis.emit.source import Source, aligned, braces, call, checked, clamp, dims, leading, tensors
from brecq.deploy.lite.packing import pack_int4
from brecq.deploy.lite.program import Operator, Tensor
from brecq.deploy.simulate.arithmetic import multiplier


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
    return f"const cmsis_nn_per_channel_quant_params quant = {braces(*(f'(int32_t *){each}' for each in found))};"


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


def convolution(source: Source, operator: Operator) -> None:
    (x, weights, bias), output = tensors(operator)
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
        pads = leading(operator, shape, filters[1:3], stride, dilation)
    low, high = clamp(operator, output)
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
    call(
        source,
        [
            f"const cmsis_nn_{kind}_params params = {braces(*offsets, *multiple, *tiles, *ends)};",
            _quantization(source, operator, x, weights, output, channels),
            f"const cmsis_nn_dims in = {dims(shape)}, filter = {dims(filters)}, bias = {{1, 1, 1, {channels}}};",
            f"const cmsis_nn_dims out = {dims(result)};",
            f"if ({function}_get_buffer_size(&params, &in, &filter, &out) > context.size) return 1;",
            checked(
                function,
                "&context",
                "&params",
                *_operands(source, x, weights, bias, output),
            ),
        ],
    )


def transposed(source: Source, operator: Operator) -> None:
    (_, weights, x, bias), output = tensors(operator)
    stride = [operator.options["strideH"], operator.options["strideW"]]
    shape, filters = list(x.shape), list(weights.shape)
    low, high = clamp(operator, output)
    params = braces(
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
    source.scratch = max(source.scratch, aligned(first) + second)
    call(
        source,
        [
            f"const cmsis_nn_transpose_conv_params params = {params};",
            _quantization(source, operator, x, weights, output, output.shape[-1]),
            f"const cmsis_nn_dims in = {dims(shape)}, filter = {dims(filters)};",
            f"const cmsis_nn_dims bias = {{1, 1, 1, {output.shape[-1]}}};",
            f"const cmsis_nn_dims out = {dims(output.shape)};",
            f"if (arm_transpose_conv_s8_get_buffer_size(&params, &in, &filter, &out) > {first}) return 1;",
            f"if (arm_transpose_conv_s8_get_reverse_conv_buffer_size(&params, &in, &filter) > {second}) return 1;",
            f"const cmsis_nn_context reverse = {{(int8_t *)context.buf + {aligned(first)}, {second}}};",
            checked(
                "arm_transpose_conv_wrapper_s8",
                "&context",
                "&reverse",
                "&params",
                *_operands(source, x, weights, bias, output),
            ),
        ],
    )
