"""Operators with weights or windows, norms and products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brecq.errors import SourceError
from brecq.sources.onnx_files.operators.call import Call, Value, operator


def _padding(call: Call, spatial: Sequence[Any], kernel: Sequence[int], stride: Sequence[int],
             dilation: Sequence[int]) -> tuple[list[int], list[int]]:  # fmt: skip
    """Padding in front and behind, for each spatial dimension."""
    rank, mode = len(kernel), call.get("auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode in ("NOTSET", ""):
        pads = list(call.get("pads", [0] * 2 * rank))
        return pads[:rank], pads[rank:]
    if mode == "VALID":
        return [0] * rank, [0] * rank
    totals = [
        max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        for size, k, s, d in zip(spatial, kernel, stride, dilation, strict=True)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _pad_if_uneven(
    x: Tensor, front: list[int], behind: list[int], value: float = 0.0, most: list[int] | None = None
) -> tuple[Tensor, list[int]]:
    """Padding that is equal on both sides is left to the operator; for pooling, as much as it takes: `most`."""
    if front == behind and (most is None or all(a <= b for a, b in zip(front, most, strict=True))):
        return x, front
    pairs = [each for pair in zip(reversed(front), reversed(behind), strict=True) for each in pair]
    return F.pad(x, pairs, value=value), [0] * len(front)


@operator("Conv")
def _conv(call: Call) -> Value:
    x, weight = call.tensor(0), call.tensor(1)
    rank = weight.dim() - 2
    stride, dilation = list(call.get("strides", [1] * rank)), list(call.get("dilations", [1] * rank))
    x, padding = _pad_if_uneven(x, *_padding(call, x.shape[2:], weight.shape[2:], stride, dilation))
    convolution: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return convolution(x, weight, call.optional(2), stride, padding, dilation, call.get("group", 1))


@operator("ConvTranspose")
def _conv_transpose(call: Call) -> Value:
    x, weight = call.tensor(0), call.tensor(1)
    rank, kernel = weight.dim() - 2, weight.shape[2:]
    stride, dilation = list(call.get("strides", [1] * rank)), list(call.get("dilations", [1] * rank))
    extra = list(call.get("output_padding", [0] * rank))
    sizes = [(n - 1) * s + e + (k - 1) * d + 1
             for n, s, e, k, d in zip(x.shape[2:], stride, extra, kernel, dilation, strict=True)]  # fmt: skip
    wanted, mode = call.get("output_shape"), call.get("auto_pad", b"NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode in ("SAME_UPPER", "SAME_LOWER") and wanted is None:
        wanted = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    if wanted is None:
        front, behind = _padding(call, x.shape[2:], kernel, stride, dilation)
    else:
        totals = [size - want for size, want in zip(sizes, wanted, strict=True)]
        if any(total < 0 for total in totals):
            raise SourceError(f"ConvTranspose: an output of {list(wanted)} is more than its input makes")
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        front, behind = (small, large) if mode == "SAME_UPPER" else (large, small)
    padding = front if front == behind else [0] * rank
    convolution: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    y = convolution(x, weight, call.optional(2), stride, padding, extra, call.get("group", 1), dilation)
    if front != behind:
        for dim, (a, b) in enumerate(zip(front, behind, strict=True)):
            y = y.narrow(dim + 2, a, y.shape[dim + 2] - a - b)
    return y


@operator("MaxPool", "AveragePool")
def _pool(call: Call) -> Value:
    x, kernel = call.tensor(0), list(call.get("kernel_shape"))
    rank = len(kernel)
    stride, dilation = list(call.get("strides", [1] * rank)), list(call.get("dilations", [1] * rank))
    ceil, counted = bool(call.get("ceil_mode", 0)), bool(call.get("count_include_pad", 0))
    if call.outputs > 1:
        raise SourceError("MaxPool: its indices are asked for; give a file without them")
    front, behind = _padding(call, x.shape[2:], kernel, stride, dilation)
    most = [size // 2 for size in kernel]
    if call.kind == "MaxPool":
        x, padding = _pad_if_uneven(x, front, behind, -math.inf, most)
        pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
        return pool(x, kernel, stride, padding, dilation, ceil)
    mean: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    if any(d != 1 for d in dilation):
        raise SourceError("AveragePool with dilations is not supported")
    plain = front == behind and all(a <= b for a, b in zip(front, most, strict=True))
    if plain or counted:
        x, padding = _pad_if_uneven(x, front, behind, 0.0, most)
        return mean(x, kernel, stride, padding, ceil, counted)
    share = torch.ones_like(x[:1, :1])
    x, share = (_pad_if_uneven(value, front, behind, 0.0, [-1] * rank)[0] for value in (x, share))
    return mean(x, kernel, stride, 0, ceil) / mean(share, kernel, stride, 0, ceil)


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(call: Call) -> Value:
    x = call.tensor(0)
    dims = list(range(2, x.dim()))
    return x.mean(dims, keepdim=True) if call.kind == "GlobalAveragePool" else x.amax(dims, keepdim=True)


@operator("BatchNormalization")
def _batch_norm(call: Call) -> Value:
    if call.get("training_mode", 0) or call.outputs > 1:
        raise SourceError("BatchNormalization in training mode; export the network in eval mode")
    x, weight, bias, mean, var = (call.tensor(i) for i in range(5))
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, call.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def _instance_norm(call: Call) -> Value:
    return F.instance_norm(
        call.tensor(0), weight=call.tensor(1), bias=call.tensor(2), eps=call.get("epsilon", 1e-5)
    )  # fmt: skip


@operator("LayerNormalization")
def _layer_norm(call: Call) -> Value:
    x, axis = call.tensor(0), call.get("axis", -1)
    return F.layer_norm(x, list(x.shape[axis:]), call.tensor(1), call.optional(2), call.get("epsilon", 1e-5))


@operator("GroupNormalization")
def _group_norm(call: Call) -> Value:
    x, weight, bias, groups = call.tensor(0), call.tensor(1), call.tensor(2), call.get("num_groups")
    if call.opset < 21:  # one number a group
        weight, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (weight, bias))
    return F.group_norm(x, groups, weight, bias, call.get("epsilon", 1e-5))


@operator("LpNormalization")
def _lp_norm(call: Call) -> Value:
    return F.normalize(call.tensor(0), call.get("p", 2), call.get("axis", -1), 1e-12)


@operator("LRN")
def _lrn(call: Call) -> Value:
    return F.local_response_norm(
        call.tensor(0), call.get("size"), call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    )


@operator("Gemm")
def _gemm(call: Call) -> Value:
    a, b = call.tensor(0), call.tensor(1)
    a = a.t() if call.get("transA", 0) else a
    y = call.get("alpha", 1.0) * (a @ (b.t() if call.get("transB", 0) else b))
    return y + call.get("beta", 1.0) * call.tensor(2) if call.has(2) else y


@operator("Linear")
def _linear(call: Call) -> Value:
    """Not of ONNX: a product with a constant matrix [outputs, inputs], see `reader`."""
    return F.linear(call.tensor(0), call.tensor(1), call.optional(2))


@operator("MatMul")
def _matmul(call: Call) -> Value:
    return torch.matmul(call.tensor(0), call.tensor(1))


@operator("Einsum")
def _einsum(call: Call) -> Value:
    equation = call.get("equation")
    equation = equation.decode() if isinstance(equation, bytes) else equation
    return torch.einsum(equation, *(call.tensor(i) for i in range(len(call.inputs))))


@operator("Softmax", "LogSoftmax")
def _softmax(call: Call) -> Value:
    x = call.tensor(0)
    function = torch.softmax if call.kind == "Softmax" else torch.log_softmax
    if call.opset >= 13:
        return function(x, call.get("axis", -1))
    axis = call.get("axis", 1) % x.dim()  # over all dimensions from there on
    return function(x.flatten(axis), axis).reshape(x.shape) if axis < x.dim() - 1 else function(x, axis)
