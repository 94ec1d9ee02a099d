"""What ONNX operators compute, in PyTorch: one function each, by name.

A value is a tensor, or a numpy array of what is known on the host: shapes, indices, scales. Arithmetic on shapes stays
on the host, with the symbol of the batch among its numbers, so that `torch.export` never asks a tensor for its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brecq.errors import SourceError

Value = Any
"""A tensor or a numpy array; `None` for an input that is left out."""

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float32, 11: torch.float32, 16: torch.float32,
}  # fmt: skip
"""By ONNX's number; half, double and bfloat16 are computed in float32."""


class Call:
    """An operator at work: its attributes, its version, and its inputs."""

    def __init__(self, kind: str, attributes: dict[str, Any], opset: int, outputs: int) -> None:
        self.kind, self.attributes, self.opset, self.outputs = kind, attributes, opset, outputs
        self.inputs: list[Value] = []
        self.batch: int | None = None

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def has_attribute(self, name: str) -> bool:
        return name in self.attributes

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def tensor(self, index: int) -> Tensor:
        return as_tensor(self.inputs[index], next((x for x in self.inputs if isinstance(x, Tensor)), None))

    def optional(self, index: int) -> Tensor | None:
        return self.tensor(index) if self.has(index) else None

    def host(self, index: int, what: str) -> np.ndarray[Any, Any]:
        """An input that has to be known before the network runs."""
        value = self.inputs[index]
        if isinstance(value, Tensor):
            raise SourceError(f"{self.kind}: its {what} is computed from activations; give a file where it is fixed")
        return value

    def numbers(self, index: int, attribute: str) -> list[Any] | None:
        """A list that older versions keep in an attribute and newer ones in an input."""
        if self.has(index):
            return list(self.host(index, attribute).reshape(-1))
        found = self.get(attribute)
        return None if found is None else list(found)


def as_tensor(value: Value, like: Tensor | None = None) -> Tensor:
    """A value as a tensor, on the device of `like`."""
    if isinstance(value, Tensor):
        return value
    device = None if like is None else like.device
    if value.dtype != object:
        return torch.tensor(value, device=device)
    flat = [torch.scalar_tensor(each, dtype=torch.int64, device=device) for each in value.reshape(-1)]
    return torch.stack(flat).reshape(value.shape) if flat else torch.zeros(value.shape, dtype=torch.int64)


Function = Callable[[Call], Any]
OPERATORS: dict[str, Function] = {}


def operator(*kinds: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        OPERATORS.update(dict.fromkeys(kinds, function))
        return function

    return register


# Elementwise

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "HardSwish": F.hardswish, "Tanh": torch.tanh, "Mish": F.mish,
    "Softplus": F.softplus, "Softsign": F.softsign, "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log,
    "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Abs": torch.abs, "Neg": torch.neg, "Floor": torch.floor,
    "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos,
    "Tan": torch.tan, "Atan": torch.atan, "Asin": torch.asin, "Acos": torch.acos, "Sinh": torch.sinh,
    "Cosh": torch.cosh, "Not": torch.logical_not, "IsNaN": torch.isnan,
}  # fmt: skip
_HOST_UNARY: dict[str, Callable[[Any], Any]] = {
    "Floor": np.floor, "Ceil": np.ceil, "Neg": np.negative, "Abs": np.abs, "Not": np.logical_not, "Sqrt": np.sqrt,
}  # fmt: skip
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Pow": lambda a, b: a**b,
    "Equal": lambda a, b: a == b, "Greater": lambda a, b: a > b, "GreaterOrEqual": lambda a, b: a >= b,
    "Less": lambda a, b: a < b, "LessOrEqual": lambda a, b: a <= b, "And": lambda a, b: a & b,
    "Or": lambda a, b: a | b, "Xor": lambda a, b: a ^ b,
}  # fmt: skip


@operator(*_UNARY)
def _unary(call: Call) -> Value:
    x = call.inputs[0]
    if not isinstance(x, Tensor) and call.kind in _HOST_UNARY:
        return _HOST_UNARY[call.kind](x)
    return _UNARY[call.kind](call.tensor(0))


@operator(*_BINARY)
def _binary(call: Call) -> Value:
    a, b = call.inputs[:2]
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return np.asarray(_BINARY[call.kind](a, b))
    return _BINARY[call.kind](_operand(a, b), _operand(b, a))


def _operand(value: Value, other: Value) -> Any:
    """A single number stays a number: operators have a form for it."""
    if isinstance(value, Tensor):
        return value
    if value.size == 1 and value.ndim <= getattr(other, "ndim", 0) and value.dtype != object:
        return value.reshape(-1)[0].item()
    return as_tensor(value, other)


@operator("Div")
def _div(call: Call) -> Value:
    a, b = call.inputs[:2]
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        whole = all(value.dtype == object or np.issubdtype(value.dtype, np.integer) for value in (a, b))
        return np.asarray(a // b if whole else a / b)
    x, y = _operand(a, b), _operand(b, a)
    first = x if isinstance(x, Tensor) else y
    floating = any(v.is_floating_point() if isinstance(v, Tensor) else isinstance(v, float) for v in (x, y))
    return x / y if floating else torch.div(x, y, rounding_mode="trunc") if isinstance(first, Tensor) else x // y


@operator("Mod")
def _mod(call: Call) -> Value:
    a, b = call.inputs[:2]
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return np.asarray(np.fmod(a, b) if call.get("fmod", 0) else a % b)
    return (torch.fmod if call.get("fmod", 0) else torch.remainder)(call.tensor(0), call.tensor(1))


@operator("Min", "Max", "Sum", "Mean")
def _several(call: Call) -> Value:
    if not any(isinstance(value, Tensor) for value in call.inputs) and call.kind in ("Min", "Max"):
        found = call.inputs[0]
        for value in call.inputs[1:]:
            found = (np.minimum if call.kind == "Min" else np.maximum)(found, value)
        return found
    total = call.tensor(0)
    for index in range(1, len(call.inputs)):
        other = call.tensor(index)
        if call.kind in ("Min", "Max"):
            total = (torch.minimum if call.kind == "Min" else torch.maximum)(total, other)
        else:
            total = total + other
    return total / len(call.inputs) if call.kind == "Mean" else total


@operator("LeakyRelu")
def _leaky(call: Call) -> Value:
    return F.leaky_relu(call.tensor(0), call.get("alpha", 0.01))


@operator("PRelu")
def _prelu(call: Call) -> Value:
    x, slope = call.tensor(0), call.tensor(1)
    per_channel = slope.numel() in (1, x.shape[1]) and slope.dim() <= x.dim() - 1
    return F.prelu(x, slope.reshape(-1)) if per_channel else torch.where(x < 0, x * slope, x)


@operator("HardSigmoid")
def _hard_sigmoid(call: Call) -> Value:
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-4 and beta == 0.5:
        return F.hardsigmoid(call.tensor(0))
    return torch.clamp(call.tensor(0) * alpha + beta, 0, 1)


@operator("Elu")
def _elu(call: Call) -> Value:
    return F.elu(call.tensor(0), call.get("alpha", 1.0))


@operator("Celu")
def _celu(call: Call) -> Value:
    return F.celu(call.tensor(0), call.get("alpha", 1.0))


@operator("Selu")
def _selu(call: Call) -> Value:
    alpha, gamma = call.get("alpha", 1.67326319), call.get("gamma", 1.05070102)
    x = call.tensor(0)
    return gamma * (torch.clamp(x, min=0) + alpha * (torch.exp(torch.clamp(x, max=0)) - 1))


@operator("ThresholdedRelu")
def _thresholded(call: Call) -> Value:
    return F.threshold(call.tensor(0), call.get("alpha", 1.0), 0.0)


@operator("Gelu")
def _gelu(call: Call) -> Value:
    return F.gelu(call.tensor(0), approximate=call.get("approximate", "none"))


@operator("Clip")
def _clip(call: Call) -> Value:
    low, high = (
        float(call.host(index, name).reshape(-1)[0]) if call.has(index) else call.get(name)
        for index, name in ((1, "min"), (2, "max"))
    )
    if not isinstance(call.inputs[0], Tensor):
        return np.clip(call.inputs[0], low, high)
    x = call.tensor(0)
    if low is None and high is None:
        return x
    if low == 0 and high == 6:
        return F.relu6(x)
    return torch.clamp(x, low, high)


@operator("Identity", "Dropout")
def _identity(call: Call) -> Value:
    if call.has(2) and bool(np.any(call.host(2, "training mode"))):
        raise SourceError("Dropout in training mode; export the network in eval mode")
    return call.inputs[0]


@operator("Cast", "CastLike")
def _cast(call: Call) -> Value:
    kind = DTYPES[call.get("to")] if call.kind == "Cast" else as_tensor(call.inputs[1]).dtype
    x = call.inputs[0]
    if isinstance(x, Tensor):
        return x.to(kind)
    if x.dtype == object:  # sizes with the symbol of the batch: whole numbers, whatever they are called
        return x
    return x.astype(torch.empty((), dtype=kind).numpy().dtype)


@operator("Where")
def _where(call: Call) -> Value:
    if not any(isinstance(value, Tensor) for value in call.inputs):
        return np.where(call.inputs[0].astype(bool), call.inputs[1], call.inputs[2])
    return torch.where(call.tensor(0).bool(), call.tensor(1), call.tensor(2))


# Layers


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


# Shapes


@operator("Shape")
def _shape(call: Call) -> Value:
    sizes = list(call.inputs[0].shape)
    return np.array(sizes[call.get("start", 0) : call.get("end", len(sizes))], dtype=object)


@operator("Size")
def _size(call: Call) -> Value:
    return np.array(math.prod(call.inputs[0].shape), dtype=object)


@operator("Reshape")
def _reshape(call: Call) -> Value:
    wanted = call.numbers(1, "shape")
    assert wanted is not None
    x = call.inputs[0]
    if not call.get("allowzero", 0):
        wanted = [x.shape[i] if isinstance(s, (int, np.integer)) and s == 0 else s for i, s in enumerate(wanted)]
    wanted = [int(s) if isinstance(s, np.integer) else s for s in wanted]
    if not isinstance(x, Tensor):
        return x.reshape([int(s) for s in wanted])
    if wanted and call.batch is not None and isinstance(wanted[0], int) and wanted[0] == call.batch:
        wanted = _with_batch(x, wanted)
    return x.reshape(wanted)


def _with_batch(x: Tensor, wanted: list[Any]) -> list[Any]:
    """The file was exported for one batch size, which stands in its shapes: any other takes its place."""
    rest, own = wanted[1:], math.prod(x.shape[1:])
    known = -1 in rest or math.prod(rest) == own
    return [x.shape[0], *rest] if known else wanted


@operator("Flatten")
def _flatten(call: Call) -> Value:
    x = call.tensor(0)
    axis = call.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.dim() > 1 else x[:, None]
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Transpose")
def _transpose(call: Call) -> Value:
    x = call.inputs[0]
    order = list(call.get("perm", range(x.ndim)[::-1]))
    return x.permute(order) if isinstance(x, Tensor) else x.transpose(order)


@operator("Squeeze", "Unsqueeze")
def _squeeze(call: Call) -> Value:
    x, axes = call.inputs[0], call.numbers(1, "axes")
    if call.kind == "Unsqueeze":
        assert axes is not None
        rank = x.ndim + len(axes)
        for axis in sorted(int(a) % rank for a in axes):
            x = x.unsqueeze(axis) if isinstance(x, Tensor) else np.expand_dims(x, axis)
        return x
    if axes is None:
        axes = [i for i, size in enumerate(x.shape) if isinstance(size, int) and size == 1]
    found = tuple(int(axis) % x.ndim for axis in axes)
    return x.squeeze(found) if isinstance(x, Tensor) else np.squeeze(x, found)


@operator("Concat")
def _concat(call: Call) -> Value:
    if not any(isinstance(value, Tensor) for value in call.inputs):
        return np.concatenate(call.inputs, call.get("axis"))
    return torch.cat([call.tensor(i) for i in range(len(call.inputs))], call.get("axis"))


@operator("Split")
def _split(call: Call) -> Value:
    x, axis, sizes = call.inputs[0], call.get("axis", 0), call.numbers(1, "split")
    if sizes is None:
        total, count = int(x.shape[axis]), call.get("num_outputs", call.outputs)
        step = -(-total // count)
        sizes = [min(step, total - i * step) for i in range(count)]
    sizes = [int(size) for size in sizes]
    if isinstance(x, Tensor):
        return tuple(x.split(sizes, axis))
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


@operator("Slice")
def _slice(call: Call) -> Value:
    x = call.inputs[0]
    starts, ends = call.numbers(1, "starts"), call.numbers(2, "ends")
    assert starts is not None
    assert ends is not None
    axes, steps = call.numbers(3, "axes") or list(range(len(starts))), call.numbers(4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis, step = int(axis) % x.ndim, int(step)
        start, end = (_bound(bound) for bound in (start, end))
        if step < 0:
            size = int(x.shape[axis])
            kept = np.arange(size)[slice(start, None if end is None or end < -size else end, step)]
            x = (
                x.index_select(axis, torch.from_numpy(kept.copy()))
                if isinstance(x, Tensor)
                else np.take(x, kept, axis)
            )
            continue
        x = x[(slice(None),) * axis + (slice(start, end, step),)]
    return x


def _bound(value: Any) -> Any:
    if not isinstance(value, (int, np.integer)):
        return value
    return None if value >= 2**31 - 1 else int(value)


@operator("Gather")
def _gather(call: Call) -> Value:
    x, index, axis = call.inputs[0], call.inputs[1], call.get("axis", 0)
    if not isinstance(x, Tensor) and not isinstance(index, Tensor):
        return np.asarray(np.take(x, index.astype(np.int64), axis), dtype=x.dtype)
    x = call.tensor(0)
    axis %= x.dim()
    if not isinstance(index, Tensor) and index.ndim == 0:
        return x.select(axis, int(index))
    index = call.tensor(1).long()
    if isinstance(call.inputs[1], Tensor) and axis == 0:
        return F.embedding(index, x) if x.dim() == 2 else x[index]
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.reshape(-1))
    return found if index.dim() == 1 else found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def _gather_elements(call: Call) -> Value:
    x, axis = call.tensor(0), call.get("axis", 0)
    index = call.tensor(1).long()
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


@operator("GatherND")
def _gather_nd(call: Call) -> Value:
    if call.get("batch_dims", 0):
        raise SourceError("GatherND with batch_dims is not supported")
    return call.tensor(0)[tuple(call.tensor(1).long().unbind(-1))]


@operator("ScatterND")
def _scatter_nd(call: Call) -> Value:
    if call.get("reduction", b"none") not in (b"none", "none"):
        raise SourceError("ScatterND with a reduction is not supported")
    index = tuple(call.tensor(1).long().unbind(-1))
    return call.tensor(0).index_put(index, call.tensor(2))


@operator("ScatterElements")
def _scatter_elements(call: Call) -> Value:
    if call.get("reduction", b"none") not in (b"none", "none"):
        raise SourceError("ScatterElements with a reduction is not supported")
    x, axis, index = call.tensor(0), call.get("axis", 0), call.tensor(1).long()
    return x.scatter(axis, torch.where(index < 0, index + x.shape[axis], index), call.tensor(2))


@operator("Expand")
def _expand(call: Call) -> Value:
    wanted = call.numbers(1, "shape")
    assert wanted is not None
    x = call.inputs[0]
    sizes = [int(s) if isinstance(s, np.integer) else s for s in wanted]
    have = [1] * (len(sizes) - x.ndim) + list(x.shape)
    sizes = [1] * (len(have) - len(sizes)) + sizes
    full = [h if isinstance(s, int) and s == 1 else s for h, s in zip(have, sizes, strict=True)]
    return x.expand(full) if isinstance(x, Tensor) else as_tensor(x).expand(full)


@operator("Tile")
def _tile(call: Call) -> Value:
    counts = [int(count) for count in call.host(1, "counts")]
    return call.tensor(0).repeat(counts) if isinstance(call.inputs[0], Tensor) else np.tile(call.inputs[0], counts)


@operator("Pad")
def _pad(call: Call) -> Value:
    x, pads = call.tensor(0), call.numbers(1, "pads")
    assert pads is not None
    axes = [int(axis) % x.dim() for axis in call.numbers(3, "axes") or range(x.dim())]
    mode = call.get("mode", "constant")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    value = float(call.host(2, "value").reshape(-1)[0]) if call.has(2) else float(call.get("value", 0.0))
    amounts = [[0, 0] for _ in range(x.dim())]
    for i, axis in enumerate(axes):
        amounts[axis] = [int(pads[i]), int(pads[i + len(axes)])]
    if mode == "constant":
        return F.pad(x, [each for pair in reversed(amounts) for each in pair], value=value)
    while amounts and amounts[0] == [0, 0]:  # other modes pad the last dimensions alone
        amounts = amounts[1:]
    names = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}
    return F.pad(x, [each for pair in reversed(amounts) for each in pair], mode=names[mode]) if amounts else x


@operator("ConstantOfShape")
def _constant_of_shape(call: Call) -> Value:
    value = call.get("value")
    value = np.zeros(1, dtype=np.float32) if value is None else np.asarray(value)
    sizes = list(call.host(0, "shape"))
    if all(isinstance(size, (int, np.integer)) for size in sizes):
        return np.full([int(size) for size in sizes], value.reshape(-1)[0])
    return torch.full([int(s) if isinstance(s, np.integer) else s for s in sizes], value.reshape(-1)[0].item(),
                      dtype=torch.as_tensor(value).dtype)  # fmt: skip


@operator("Range")
def _range(call: Call) -> Value:
    start, stop, step = (call.host(i, "bounds").reshape(-1)[0] for i in range(3))
    if all(isinstance(value, (int, float, np.number)) for value in (start, stop, step)):
        return np.arange(start, stop, step)
    return torch.arange(start, stop, step)


@operator("DepthToSpace", "SpaceToDepth")
def _depth_to_space(call: Call) -> Value:
    x, block = call.tensor(0), call.get("blocksize")
    n, c, h, w = x.shape
    mode = call.get("mode", b"DCR")
    if call.kind == "SpaceToDepth":
        if mode in (b"CRD", "CRD") and call.has_attribute("mode"):
            raise SourceError("SpaceToDepth in the mode CRD is not supported")
        x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * block * block, h // block, w // block)
    if mode in (b"CRD", "CRD"):
        return F.pixel_shuffle(x, block)
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


@operator("Trilu")
def _trilu(call: Call) -> Value:
    k = int(call.host(1, "diagonal").reshape(-1)[0]) if call.has(1) else 0
    return (torch.triu if call.get("upper", 1) else torch.tril)(call.tensor(0), k)


@operator("CumSum")
def _cumsum(call: Call) -> Value:
    if call.get("exclusive", 0) or call.get("reverse", 0):
        raise SourceError("CumSum exclusive or in reverse is not supported")
    return call.tensor(0).cumsum(int(call.host(1, "axis").reshape(-1)[0]))


# Resizing


@operator("Resize", "Upsample")
def _resize(call: Call) -> Value:
    x = call.tensor(0)
    axes = [axis % x.dim() for axis in call.get("axes", range(x.dim()))]
    mode, where = _text(call.get("mode", "nearest")), _text(call.get("coordinate_transformation_mode", "half_pixel"))
    if call.kind == "Upsample" or call.opset < 11:
        where = "asymmetric"
    if _text(call.get("keep_aspect_ratio_policy", "stretch")) != "stretch" or call.get("antialias", 0):
        raise SourceError("Resize that keeps the aspect ratio, or smooths before it shrinks, is not supported")
    sizes = _spread(call.numbers(3, "sizes") if call.has(3) else None, axes, list(x.shape))
    scales = None
    if sizes is None:
        first = 2 if call.kind == "Resize" and call.opset >= 11 else 1
        scales = _spread(call.numbers(first, "scales"), axes, [1.0] * x.dim())
        assert scales is not None
        scales = [float(scale) for scale in scales]
    if mode == "nearest":
        rounding = "floor" if call.opset < 11 else _text(call.get("nearest_mode", "round_prefer_floor"))
        return _nearest(x, sizes, scales, where, rounding)
    if mode not in ("linear", "cubic") or x.dim() != 4:
        raise SourceError(f"Resize: {mode} of {x.dim()} dimensions is not supported")
    if mode == "cubic" and (abs(call.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6 or call.get("exclude_outside", 0)):
        raise SourceError("Resize: cubic with other coefficients than PyTorch's is not supported")
    if where not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise SourceError(f"Resize: {mode} with the coordinates {where} is not supported; export with half_pixel")
    name, corners = "bilinear" if mode == "linear" else "bicubic", where == "align_corners"
    if sizes is not None:
        _refuse_single(sizes, where)
        return F.interpolate(x, size=sizes[2:], mode=name, align_corners=corners)
    assert scales is not None
    made = [size * scale for size, scale in zip(x.shape[2:], scales[2:], strict=True)]
    if corners and any(isinstance(size, float) and not size.is_integer() for size in made):
        raise SourceError("Resize: align_corners to a fraction of a pixel is not supported; export with sizes")
    _refuse_single([int(size) if isinstance(size, float) else size for size in made], where)
    return F.interpolate(x, scale_factor=scales[2:], mode=name, align_corners=corners)


def _spread(values: list[Any] | None, axes: Sequence[int], others: list[Any]) -> list[Any] | None:
    """Numbers for some axes as numbers for all; `None` without any."""
    if not values:
        return None
    return [_whole(values[axes.index(d)]) if d in axes else other for d, other in enumerate(others)]


def _refuse_single(sizes: Sequence[Any], where: str) -> None:
    if where == "pytorch_half_pixel" and any(isinstance(size, int) and size == 1 for size in sizes[-2:]):
        raise SourceError("Resize to a single pixel with pytorch_half_pixel is not supported")


def _nearest(x: Tensor, sizes: list[Any] | None, scales: list[float] | None, where: str, rounding: str) -> Tensor:
    """Rows and columns picked as ONNX says; where PyTorch's operator picks the same, it does it."""
    whole = scales is not None and all(float(scale).is_integer() for scale in scales)
    known = all(isinstance(size, int) for size in x.shape[2:]) and (
        sizes is None or all(isinstance(size, int) for size in sizes[2:])
    )
    if not known:
        if not whole:
            raise SourceError("Resize: nearest to sizes that are not fixed is not supported")
        return F.interpolate(x, scale_factor=scales[2:], mode="nearest")  # type: ignore[index]
    picked = []
    for axis in range(2, x.dim()):
        size = x.shape[axis]
        made = sizes[axis] if sizes is not None else math.floor(size * scales[axis])  # type: ignore[index]
        scale = made / size if sizes is not None else scales[axis]  # type: ignore[index]
        picked.append(_indices(size, made, scale, where, rounding))
    plain = [np.floor(np.arange(len(p)) * (n / len(p))).astype(int) for p, n in zip(picked, x.shape[2:], strict=True)]
    if 3 <= x.dim() <= 5 and all(np.array_equal(a, b) for a, b in zip(picked, plain, strict=True)):
        return F.interpolate(x, size=[len(p) for p in picked], mode="nearest")
    for axis, index in enumerate(picked, 2):
        x = x.index_select(axis, torch.from_numpy(index).to(x.device))
    return x


def _indices(size: int, made: int, scale: float, where: str, rounding: str) -> np.ndarray[Any, Any]:
    out = np.arange(made)
    if where in ("half_pixel", "pytorch_half_pixel"):
        at = (out + 0.5) / scale - 0.5 if where == "half_pixel" or made > 1 else np.zeros(made)
    elif where == "asymmetric":
        at = out / scale
    elif where == "align_corners":
        at = out * ((size - 1) / (made - 1)) if made > 1 else np.zeros(made)
    else:
        raise SourceError(f"Resize: nearest with the coordinates {where} is not supported")
    functions: dict[str, Callable[[Any], Any]] = {
        "floor": np.floor, "ceil": np.ceil, "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }  # fmt: skip
    rounded = functions[rounding](at)
    return np.clip(rounded, 0, size - 1).astype(np.int64)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, np.integer) else value


# Reductions

_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
    "ReduceL1": lambda x, d, keepdim: x.abs().sum(d, keepdim=keepdim),
    "ReduceL2": lambda x, d, keepdim: x.square().sum(d, keepdim=keepdim).sqrt(),
    "ReduceSumSquare": lambda x, d, keepdim: x.square().sum(d, keepdim=keepdim),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceLogSum": lambda x, d, keepdim: x.sum(d, keepdim=keepdim).log(),
}  # fmt: skip


@operator(*_REDUCTIONS)
def _reduce(call: Call) -> Value:
    x = call.tensor(0)
    axes = call.numbers(1, "axes")
    if not axes:
        if call.get("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.dim()))
    return _REDUCTIONS[call.kind](x, [int(axis) for axis in axes], keepdim=bool(call.get("keepdims", 1)))


@operator("ReduceProd")
def _reduce_prod(call: Call) -> Value:
    x, keep = call.inputs[0], bool(call.get("keepdims", 1))
    axes = call.numbers(1, "axes") or list(range(x.ndim))
    if not isinstance(x, Tensor):
        return np.asarray(np.prod(x, tuple(int(axis) for axis in axes), keepdims=keep))
    for axis in sorted((int(axis) % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


@operator("ArgMax", "ArgMin")
def _arg(call: Call) -> Value:
    if call.get("select_last_index", 0):
        raise SourceError(f"{call.kind} with select_last_index is not supported")
    function = torch.argmax if call.kind == "ArgMax" else torch.argmin
    return function(call.tensor(0), call.get("axis", 0), keepdim=bool(call.get("keepdims", 1)))


@operator("TopK")
def _top_k(call: Call) -> Value:
    k = call.numbers(1, "k")
    count = int(k[0]) if k else int(call.get("k"))
    found = torch.topk(call.tensor(0), count, call.get("axis", -1), bool(call.get("largest", 1)))
    return found.values, found.indices
