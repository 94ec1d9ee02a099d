"""Operators that compute in float: activation functions, normalization, attention, reductions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from brecq.converted.rewrite import clamp_bounds
from brecq.deploy.lite.joins import add, mean, multiply
from brecq.deploy.lite.lowering import Lowering, lowers
from brecq.deploy.lite.moves import resized, view
from brecq.deploy.lite.program import Tensor, constant
from brecq.deploy.lite.values import Layout, Pending, Value, arranged, identity
from brecq.graph import ops
from brecq.graph.integer import CLAMPS

aten = ops.aten

Arguments = tuple[Any, ...]
Options = dict[str, Any]

_ALIKE: dict[Any, str] = {
    aten.sigmoid.default: "LOGISTIC", aten.tanh.default: "TANH", aten.sqrt.default: "SQRT", aten.exp.default: "EXP",
    aten.rsqrt.default: "RSQRT", aten.neg.default: "NEG", aten.abs.default: "ABS", aten.square.default: "SQUARE",
    aten.log.default: "LOG", aten.sin.default: "SIN", aten.cos.default: "COS", aten.hardswish.default: "HARD_SWISH",
    aten.floor.default: "FLOOR", aten.ceil.default: "CEIL",
}  # fmt: skip
"""Functions of one element that the schema has under another name."""


def scalar(value: float) -> Tensor:
    return Tensor(f"{value:g}", (1,), "float32", None, np.array([value], np.float32))


class Real:
    """Float arithmetic on one memory order, written as formulas."""

    def __init__(self, low: Lowering, shape: tuple[int, ...], layout: Layout, tensor: Tensor) -> None:
        self.low, self.shape, self.layout, self.tensor = low, shape, layout, tensor

    @classmethod
    def of(cls, low: Lowering, value: Value) -> Real:
        layout = value.layouts[0]
        return cls(low, value.shape, layout, value.real(layout))

    def value(self) -> Value:
        return Value(self.low.build, self.tensor.name, self.shape, reals={self.layout: self.tensor})

    def call(self, kind: str, *others: Tensor | float, swap: bool = False, **options: Any) -> Real:
        """An elementwise operator of this and others."""
        inputs = [self.tensor, *(each if isinstance(each, Tensor) else scalar(each) for each in others)]
        tensor = self.low.build.emit(
            kind, inputs[::-1] if swap else inputs, kind.lower(), self.tensor.shape, **options
        )
        return Real(self.low, self.shape, self.layout, tensor)

    def reduce(self, kind: str, dims: list[int]) -> Real:
        """A reduction that keeps its dimensions, as ones."""
        axes = constant("axes", sorted(self.layout.index(dim) for dim in dims))
        shape = tuple(1 if dim in dims else length for dim, length in enumerate(self.shape))
        tensor = self.low.build.emit(
            kind, [self.tensor, axes], kind.lower(), arranged(shape, self.layout), keepDims=True
        )
        return Real(self.low, shape, self.layout, tensor)

    def with_(self, kind: str, other: Real) -> Real:
        return self.call(kind, other.tensor)


def unary(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    return Real.of(low, low.value(args[0])).call(_ALIKE[node.target]).value()


lowers(*_ALIKE)(unary)


@lowers(*CLAMPS, aten.clamp_max.default)
def clamp(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = Real.of(low, low.value(args[0]))
    bounds = (-math.inf, float(args[1])) if node.target is aten.clamp_max.default else clamp_bounds(node)
    if bounds is None:
        low.refuse(node, "has bounds that are tensors")
    assert bounds is not None
    if bounds == (0.0, math.inf):
        return x.call("RELU").value()
    if bounds == (0.0, 6.0):
        return x.call("RELU6").value()
    for kind, bound in (("MAXIMUM", bounds[0]), ("MINIMUM", bounds[1])):
        x = x if math.isinf(bound) else x.call(kind, bound)
    return x.value()


@lowers(aten.silu.default)
def silu(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = Real.of(low, low.value(args[0]))
    return x.with_("MUL", x.call("LOGISTIC")).value()


@lowers(aten.hardsigmoid.default)
def hardsigmoid(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = Real.of(low, low.value(args[0]))
    return x.call("ADD", 3.0, fusedActivationFunction=3).call("MUL", 1 / 6).value()


@lowers(aten.gelu.default)
def gelu(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = Real.of(low, low.value(args[0]))
    return x.call("GELU", approximate=kwargs.get("approximate", "none") == "tanh").value()


@lowers(aten.leaky_relu.default)
def leaky(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    slope = float(args[1]) if len(args) > 1 else 0.01
    return Real.of(low, low.value(args[0])).call("LEAKY_RELU", alpha=slope).value()


@lowers(aten.elu.default)
def elu(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    if any(float(each) != 1 for each in args[1:]):
        low.refuse(node, "has other constants than 1")
    return Real.of(low, low.value(args[0])).call("ELU").value()


@lowers(aten.reciprocal.default)
def reciprocal(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    return Real.of(low, low.value(args[0])).call("DIV", 1.0, swap=True).value()


@lowers(aten.pow.Tensor_Scalar)
def power(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = Real.of(low, low.value(args[0]))
    return (x.call("SQUARE") if args[1] == 2 else x.call("POW", float(args[1]))).value()


@lowers(aten.softmax.int, aten._softmax.default)
def softmax(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    return _softmax(low, low.value(args[0]), args[1])


def _softmax(low: Lowering, value: Value, dim: int) -> Value:
    """LiteRT sums over what is last in memory."""
    dim %= value.rank
    layout = value.layouts[0]
    layout = (*(each for each in layout if each != dim), dim)
    x = Real(low, value.shape, layout, value.real(layout))
    return x.call("SOFTMAX", beta=1.0).value()


@lowers(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)
def reduction(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Any:
    kinds: dict[Any, str] = {aten.mean.dim: "MEAN", aten.sum.dim_IntList: "SUM", aten.amax.default: "REDUCE_MAX"}
    value = low.value(args[0])
    dims = args[1] if len(args) > 1 and args[1] is not None else []
    dims = [dims] if isinstance(dims, int) else list(dims)
    dims = [dim % value.rank for dim in dims] or list(range(value.rank))
    shape = low.env[node].shape
    if node.target is aten.mean.dim and value.rank == 4 and sorted(dims) == [2, 3] and value.is_quantized:
        pending = mean(low, value)
        return Pending(
            lambda grid, name: view(low, pending.on(grid, name), shape), lambda: view(low, pending.real(), shape)
        )
    return view(low, Real.of(low, value).reduce(kinds.get(node.target, "REDUCE_MIN"), dims).value(), shape)


@lowers(aten.linalg_vector_norm.default)
def norm(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    value = low.value(args[0])
    order, dims = (*args[1:], 2, None)[:2]
    if order != 2:
        low.refuse(node, f"takes the norm of order {order}")
    dims = [dim % value.rank for dim in dims] if dims else list(range(value.rank))
    return view(low, Real.of(low, value).call("SQUARE").reduce("SUM", dims).call("SQRT").value(), low.env[node].shape)


@lowers(aten.layer_norm.default)
def layer_norm(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = Real.of(low, low.value(args[0]))
    sizes, weight, bias, epsilon = (*args[1:], *[None] * 4)[:4]
    dims = list(range(len(x.shape) - len(sizes), len(x.shape)))
    return _scaled(low, _normalized(x, dims, 1e-5 if epsilon is None else epsilon), weight, bias)


@lowers(aten.group_norm.default)
def group_norm(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    value = low.value(args[0])
    groups, weight, bias, epsilon = (*args[1:], *[None] * 4)[:4]
    batch, channels, *rest = value.shape
    grouped = Real.of(low, view(low, value, (batch, groups, channels // groups, *rest)))
    normal = _normalized(grouped, list(range(2, len(grouped.shape))), 1e-5 if epsilon is None else epsilon)
    whole = Real.of(low, view(low, normal.value(), value.shape))
    weight, bias = (None if each is None else each.reshape(-1, *[1] * len(rest)) for each in (weight, bias))
    return _scaled(low, whole, weight, bias)


@lowers(aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
def batch_norm(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    x = Real.of(low, low.value(args[0]))
    parts: list[Any] = [low.env[each] if isinstance(each, Node) else each for each in node.args[1:5]]
    weight, bias, mean, variance = parts
    epsilon = args[7] if node.target is aten.batch_norm.default else args[6]
    factor = (1 if weight is None else weight) / torch.sqrt(variance + epsilon)
    shift = (0 if bias is None else bias) - mean * factor
    shape = (-1, *[1] * (len(x.shape) - 2))
    return _scaled(low, x, factor.reshape(shape), shift.reshape(shape))


def _normalized(x: Real, dims: list[int], epsilon: float) -> Real:
    centred = x.with_("SUB", x.reduce("MEAN", dims))
    return centred.with_("MUL", centred.call("SQUARE").reduce("MEAN", dims).call("ADD", epsilon).call("RSQRT"))


def _scaled(low: Lowering, x: Real, weight: Any, bias: Any) -> Value:
    """x * weight + bias, either of which may be missing; both broadcast against the last dimensions."""
    for kind, numbers in (("MUL", weight), ("ADD", bias)):
        if numbers is not None:
            x = x.call(kind, low.value(numbers, len(x.shape)).real(x.layout))
    return x.value()


@lowers(aten.matmul.default, aten.bmm.default)
def matmul(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    return _product(low, low.value(args[0]), low.value(args[1]))


def _product(low: Lowering, left: Value, right: Value, transpose: bool = False) -> Value:
    a, b = left.real(identity(left.rank)), right.real(identity(right.rank))
    columns = right.shape[-2 if transpose else -1]
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    shape = (*lead, left.shape[-2], columns)
    name = low.build.free("product")
    tensor = low.build.emit("BATCH_MATMUL", [a, b], name, shape, adjY=transpose)
    return Value(low.build, name, shape, reals={identity(len(shape)): tensor})


@lowers(aten.scaled_dot_product_attention.default)
def attention(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    query, key, value = (low.value(each) for each in args[:3])
    mask, dropout, causal = (*args[3:], *[None] * 3)[:3]
    if mask is not None or dropout or causal or kwargs.get("enable_gqa"):
        low.refuse(node, "has a mask, drops out or shares heads")
    scale = kwargs.get("scale") or 1 / math.sqrt(query.shape[-1])
    scaled = Real.of(low, query).call("MUL", float(scale)).value()
    return _product(low, _softmax(low, _product(low, scaled, key, transpose=True), -1), value)


@lowers(aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default)
def bilinear(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Value:
    corners = bool(args[2])
    options = {"alignCorners": corners, "halfPixelCenters": not corners}
    return resized(low, node, low.value(args[0]), "RESIZE_BILINEAR", options)


@lowers(aten.addcmul.default)
def addcmul(low: Lowering, node: Node, args: Arguments, kwargs: Options) -> Any:
    product = multiply(low, node, args[1:3], {})
    product = product.real() if isinstance(product, Pending) else product
    if kwargs.get("value", 1) != 1:
        product = multiply(low, node, (product, kwargs["value"]), {})
    return add(low, node, (args[0], product), {})
