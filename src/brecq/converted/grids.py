"""What is quantized how in a converted program, read off its quantize and dequantize operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from brecq.graph import ops
from brecq.graph.fold import get_tensor
from brecq.placement.pt2e import decomposed

QUANTIZE = decomposed.quantize_per_tensor.default
DEQUANTIZE = decomposed.dequantize_per_tensor.default
DEQUANTIZE_CHANNELS = decomposed.dequantize_per_channel.default


@dataclass(frozen=True)
class Grid:
    """A per-tensor grid of an activation: value = (code - zero_point) * scale, code in low..high.

    `scale` is the float32 number of the program as a Python float. `dtype` is the type that carries the codes; `low`
    and `high` may be narrower than it (fewer bits, or a clamp that was folded into the quantizer).
    """

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: torch.dtype = torch.uint8

    def arguments(self) -> tuple[float, int, int, int, torch.dtype]:
        """As `quantized_decomposed.quantize_per_tensor` takes them after its input."""
        return (self.scale, self.zero_point, self.low, self.high, self.dtype)

    @property
    def whole(self) -> bool:
        """True if every code of `dtype` may occur."""
        info = torch.iinfo(self.dtype)
        return (self.low, self.high) == (info.min, info.max)

    def same_codes(self, other: Grid) -> bool:
        """True if equal codes mean equal values on both grids."""
        return (self.scale, self.zero_point, self.dtype) == (other.scale, other.zero_point, other.dtype)


def grid_of(node: Node) -> Grid:
    """The grid of a per-tensor quantize or dequantize node."""
    scale, zero_point, low, high, dtype = node.args[1:6]
    return Grid(float(scale), int(zero_point), int(low), int(high), dtype)  # type: ignore[arg-type]


def activations(graph: Graph) -> list[Node]:
    """The network's inputs and the operators behind them that its outputs depend on, in program order, without sizes,
    quantize and dequantize operators.

    Exporting a program again, or saving and loading it, moves its constants and renames its nodes, but leaves this
    list as it is: a position in it is a lasting name.
    """
    nodes = list(graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    behind, live = set(inputs), {node for node in nodes if node.op == "output"}
    for node in nodes:
        if node.op == "call_function" and any(source in behind for source in node.all_input_nodes):
            behind.add(node)
    for node in reversed(nodes):
        if node in live and not ops.is_size(node):
            live.update(node.all_input_nodes)
    computed = behind & live
    skipped = {QUANTIZE, DEQUANTIZE}
    return inputs + [
        node
        for node in nodes
        if node.op == "call_function" and node in computed and node.target not in skipped and not ops.is_size(node)
    ]


def quantized_as(node: Any, *, constants: bool = True) -> Grid | None:
    """The grid that a tensor is on: dequantized right here, or moved about and joined since then.

    Args:
        constants: what is stored as codes is on a grid, too; not every runtime joins it as such (`is_joined`).
    """
    if not isinstance(node, Node) or node.op != "call_function":
        return None
    if node.target is DEQUANTIZE:
        return grid_of(node) if constants or not _is_stored(node) else None
    if ops.moves(node):
        return quantized_as(node.args[0], constants=constants)
    if node.target in ops.CONCAT:
        grids = [quantized_as(part, constants=constants) for part in node.args[0]]  # type: ignore[union-attr]
        first = grids[0]
        if first is not None and all(grid is not None and first.same_codes(grid) for grid in grids):
            return first
    return None


def is_joined(node: Node) -> bool:
    """True for a constant stored as codes that is only joined with other tensors, as a class token is with its tokens:
    it is on their grid."""
    return node.target is DEQUANTIZE and _is_stored(node) and _ends_in_joins(node)


def _is_stored(dequantizer: Node) -> bool:
    codes: Any = dequantizer.args[0]
    return bool(codes.op == "get_attr")


def _ends_in_joins(node: Node) -> bool:
    return bool(node.users) and all(
        user.target in ops.CONCAT or (ops.moves(user) and _ends_in_joins(user)) for user in node.users
    )


def is_integer_layer(node: Node, *, constants: bool = True) -> bool:
    """True for a convolution or linear layer with a quantized input and a constant integer weight; `constants`: as for
    `quantized_as`."""
    weight = node.args[1] if ops.kind(node) else None
    if not isinstance(weight, Node) or weight.target not in (DEQUANTIZE, DEQUANTIZE_CHANNELS):
        return False
    return _is_stored(weight) and quantized_as(node.args[0], constants=constants) is not None


def constant(graph: GraphModule, node: Any) -> torch.Tensor:
    """The tensor of a `get_attr` node, detached, on the CPU."""
    return get_tensor(graph, str(node.target)).detach().cpu()
