"""Which tensors still need a quantizer so that an integer runtime can stay with integers.

A converted program quantizes what block reconstruction quantizes: inputs of layers. An integer kernel also needs a
grid for what it writes, and additions, products, poolings and concatenations need one for everything that they read.
Whatever computes in float anyway (normalization, softmax, the residual stream of a transformer) is left alone: an
operator without a weight becomes an integer one only if its own result is quantized.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from brecq.converted.grids import POOLS, QUANTIZE, activations, is_integer_layer, is_join, quantized_as
from brecq.graph import ops

CLAMPS = {
    ops.aten.relu.default, ops.aten.relu6.default, ops.aten.hardtanh.default, ops.aten.clamp.default,
    ops.aten.clamp_min.default,
}  # fmt: skip
"""Activation functions that a quantizer behind them can take over: they only bound the values."""


def tensors_to_complete(graph: GraphModule, *, linear_outputs: bool = False) -> list[Node]:
    """Nodes of a converted program whose values need an 8-bit quantizer, in program order.

    Args:
        linear_outputs: include what linear layers leave in float. ONNX Runtime and OpenVINO have integer kernels
            that write float there, so it costs accuracy for nothing; XNNPACK has none.
    """
    wanted: set[Node] = set()
    nodes = list(graph.graph.nodes)
    for node in reversed(nodes):
        if node.op != "call_function":
            continue
        end = clamped_end(node)
        if is_integer_layer(node):
            if linear_outputs or ops.kind(node) != "linear" or end in wanted:
                wanted.add(end)
        elif computes_on_codes(node) and (end in wanted or node in wanted or _has_quantizer(end)):
            wanted.add(end)
            wanted.update(source for operand in operands(node) for source in _unquantized(operand))
    return [node for node in nodes if node in wanted and _is_float(node) and not _is_quantized(node)]


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def clamped_end(node: Node) -> Node:
    """`node`, or the last of the clamps behind it that nothing else comes between."""
    while len(node.users) == 1 and next(iter(node.users)).target in CLAMPS:
        node = next(iter(node.users))
    return node


def computes_on_codes(node: Node) -> bool:
    """True for operators without a weight that integer runtimes have kernels for."""
    if is_join(node, ops.aten.add.Tensor):
        return True
    if is_join(node, ops.aten.mul.Tensor):
        left, right = operands(node)
        return left not in right.all_input_nodes and right not in left.all_input_nodes  # x·sigmoid(x) is swish
    if node.target is ops.aten.mean.dim:
        return _is_spatial(node)
    return node.target in POOLS or node.target in ops.CONCAT


def operands(node: Node) -> list[Node]:
    """The activations that a node joins or pools."""
    if node.target in ops.CONCAT:
        return [part for part in node.args[0] if isinstance(part, Node)]  # type: ignore[union-attr]
    count = 2 if node.target in (ops.aten.add.Tensor, ops.aten.mul.Tensor) else 1
    return [arg for arg in node.args[:count] if isinstance(arg, Node)]


def float_operators(graph: GraphModule) -> set[str]:
    """Names of the operators that a completed program computes in float: the others compute on codes or move data."""
    found = set()
    for node in activations(graph.graph):
        if node.op != "call_function" or node.target in ops.MOVEMENT or quantized_as(node) is not None:
            continue
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and not value.is_floating_point():
            continue  # of whole numbers and truth values, no bit is in doubt
        if is_integer_layer(node) and not str(ops.kind(node)).startswith("conv_transpose"):
            continue
        ends_in_codes = bool(node.users) and all(user.target is QUANTIZE for user in node.users)
        if computes_on_codes(node) and ends_in_codes and all(quantized_as(operand) for operand in operands(node)):
            continue
        found.add(ops.op_name(node))
    return found


def _is_spatial(mean: Node) -> bool:
    """True for a mean over height and width of [N, C, H, W]."""
    dims: Any = mean.args[1] or []
    keeps = len(mean.args) > 2 and bool(mean.args[2])
    rank = mean.meta["val"].dim() + (0 if keeps else len(dims))
    return rank == 4 and sorted(dim % 4 for dim in dims) == [2, 3]


def _unquantized(operand: Node) -> list[Node]:
    """The tensors to quantize so that `operand` is on a grid: where data movement and concatenation took it from."""
    if quantized_as(operand) is not None:
        return []
    if operand.op == "call_function" and operand.target in ops.MOVEMENT and isinstance(operand.args[0], Node):
        return _unquantized(operand.args[0])
    return [operand]


def _has_quantizer(node: Node) -> bool:
    return any(user.target is QUANTIZE for user in node.users)


def _is_quantized(node: Node) -> bool:
    """True if all that read the node read it through one quantizer."""
    return len(node.users) == 1 and _has_quantizer(node)
