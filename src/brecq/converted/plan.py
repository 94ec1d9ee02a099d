"""Which tensors still need a quantizer so that an integer runtime can stay with integers.

A converted program quantizes what block reconstruction quantizes: inputs of layers. An integer kernel also needs a
grid for what it writes, and additions, products, poolings and concatenations need one for everything that they read.
Whatever computes in float anyway (normalization, softmax, the residual stream of a transformer) is left alone: an
operator without a weight becomes an integer one only if its own result is quantized.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from brecq.converted.grids import QUANTIZE, activations, is_integer_layer, quantized_as
from brecq.graph import ops
from brecq.graph.integer import clamped_end, computes_on_codes, operands


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


def float_operators(
    graph: GraphModule, on_codes: Callable[[Node], bool] = lambda node: False, *, constants: bool = False
) -> set[str]:
    """Names of the operators that a completed program computes in float: the others compute on codes or move data.

    Args:
        on_codes: of what one runtime computes on codes besides. constants: it joins constants as codes.
    """
    on_grid = partial(quantized_as, constants=constants)
    found = set()
    for node in activations(graph.graph):
        if node.op != "call_function" or ops.moves(node) or on_grid(node) is not None:
            continue
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and not value.is_floating_point():
            continue  # of whole numbers and truth values, no bit is in doubt
        if on_codes(node):
            continue
        if is_integer_layer(node, constants=constants) and not str(ops.kind(node)).startswith("conv_transpose"):
            continue
        ends_in_codes = bool(node.users) and all(user.target is QUANTIZE for user in node.users)
        if computes_on_codes(node) and ends_in_codes and all(map(on_grid, operands(node))):
            continue
        found.add(ops.op_name(node))
    return found


def _unquantized(operand: Node) -> list[Node]:
    """The tensors to quantize so that `operand` is on a grid: where data movement and concatenation took it from."""
    if quantized_as(operand) is not None:
        return []
    if operand.op == "call_function" and ops.moves(operand) and isinstance(operand.args[0], Node):
        return _unquantized(operand.args[0])
    return [operand]


def _has_quantizer(node: Node) -> bool:
    return any(user.target is QUANTIZE for user in node.users)


def _is_quantized(node: Node) -> bool:
    """True if all that read the node read it through one quantizer."""
    return len(node.users) == 1 and _has_quantizer(node)
