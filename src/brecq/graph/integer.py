"""Which operators without a weight integer runtimes compute on codes, and what they read and write."""

from __future__ import annotations

from collections import deque
from typing import Any

from torch.fx import Node

from brecq.graph import ops

aten = ops.aten

POOLS = {aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.mean.dim}

CLAMPS = {
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
}  # fmt: skip
"""Activation functions that a quantizer behind them can take over: they only bound the values."""

THREE = 3.0
"""hardswish(x) = x · clamp(x + 3, 0, 6) / 6: a product of codes where the step of x divides 3."""

_UNARY: dict[Any, str] = {
    aten.sigmoid.default: "sigmoid", aten.tanh.default: "tanh", aten.hardsigmoid.default: "hardsigmoid",
    aten.hardswish.default: "hardswish", aten.silu.default: "silu", aten.gelu.default: "gelu",
    aten.softmax.int: "softmax", aten._softmax.default: "softmax", aten.layer_norm.default: "layer_norm",
    aten.leaky_relu.default: "leaky_relu", aten.elu.default: "elu", aten.upsample_bilinear2d.vec: "interpolate",
}  # fmt: skip


def operator_of(node: Node) -> str | None:
    """The name of an operator as targets' tables have it; `None` for layers, movement and what is not listed."""
    if is_join(node, aten.add.Tensor):
        return "add"
    if is_join(node, aten.mul.Tensor):
        left, right = operands(node)
        # x·sigmoid(x) is swish
        return "mul" if left not in right.all_input_nodes and right not in left.all_input_nodes else None
    if node.target is aten.mean.dim:
        return "average_pool" if _is_spatial(node) else None
    if node.target in POOLS:
        return "average_pool"
    return "concat" if node.target in ops.CONCAT else _UNARY.get(node.target)


def function_of(node: Node) -> str | None:
    """The name of a function of one element, as targets' tables have it; `None` for everything else."""
    name = _UNARY.get(node.target)
    return None if name in ("softmax", "layer_norm", "interpolate") else name


def slope_of(node: Node) -> float:
    """What a leaky ReLU multiplies negative numbers with; 1 for other functions."""
    return float(node.args[1]) if len(node.args) > 1 else 0.01 if node.target is aten.leaky_relu.default else 1.0  # type: ignore[arg-type]


def computes_on_codes(node: Node) -> bool:
    """True for operators that brecq's simulator and exports compute on codes."""
    return operator_of(node) in ("add", "mul", "average_pool", "concat")


def operands(node: Node) -> list[Node]:
    """The activations that a node joins, pools or takes."""
    if node.target in ops.CONCAT:
        return [part for part in node.args[0] if isinstance(part, Node)]  # type: ignore[union-attr]
    count = 2 if node.target in (aten.add.Tensor, aten.mul.Tensor) else 1
    return [arg for arg in node.args[:count] if isinstance(arg, Node)]


def clamped_end(node: Node) -> Node:
    """`node`, or the last of the clamps behind it that nothing else comes between."""
    while len(node.users) == 1 and next(iter(node.users)).target in CLAMPS:
        node = next(iter(node.users))
    return node


def is_join(node: Node, target: Any) -> bool:
    """True for `target` (an addition, a product) of two distinct activations, neither a constant nor scaled."""
    if node.target is not target or node.kwargs.get("alpha", 1) != 1:
        return False
    found = [arg for arg in node.args[:2] if isinstance(arg, Node) and not _is_constant(arg)]
    return len(found) == 2 and not any(ops.is_size(operand) for operand in found)


def _is_constant(node: Node) -> bool:
    """True for what depends on no activation.

    The nearest come first: whatever a layer computes is an activation, since capture folds what layers make of
    constants, so that there is no need to look back through the whole network.
    """
    queue, seen = deque([node]), {node}
    while queue:
        node = queue.popleft()
        if node.op == "get_attr":
            continue
        if node.op != "call_function" or ops.kind(node) or not node.all_input_nodes:
            return False
        new = [source for source in node.all_input_nodes if source not in seen]
        seen.update(new)
        queue += new
    return True


def _is_spatial(mean: Node) -> bool:
    """True for a mean over height and width of [N, C, H, W]."""
    dims: Any = mean.args[1] or []
    keeps = len(mean.args) > 2 and bool(mean.args[2])
    rank = mean.meta["val"].dim() + (0 if keeps else len(dims))
    return rank == 4 and sorted(dim % 4 for dim in dims) == [2, 3]
