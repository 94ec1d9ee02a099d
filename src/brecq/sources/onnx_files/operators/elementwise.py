"""Operators on every number by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brecq.errors import SourceError
from brecq.sources.onnx_files.operators.call import DTYPES, Call, Value, as_tensor, operator

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
