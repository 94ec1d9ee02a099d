"""Adding nodes and constants to an ONNX graph while it is rewritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from brecq.deploy.onnx.names import name_beside
from brecq.deploy.onnx.neutral import DOMAIN

_SHARED = 4096


class Builder:
    """Inserts nodes into `graph`; equal constants of up to 4096 elements are stored once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._count = 0
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def constant(self, name: str, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer named like `name`. `dtype` is needed for the types that NumPy has no name for."""
        key = (str(array.dtype), dtype, array.shape, array.tobytes())
        if array.size <= _SHARED and key in self._constants:
            return self._constants[key]
        tensor = ir.Tensor(array, dtype=dtype, name=self._free(name))
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        value.const_value = tensor
        self.graph.register_initializer(value)
        self._constants[key] = value
        return value

    def forget(self, value: ir.Value | None) -> None:
        """Free the name of a constant that one node alone still reads, for what takes its place."""
        if value is not None and len(readers(value)) == 1:
            self.graph.initializers.pop(str(value.name), None)

    def node(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str | None,
        dtype: ir.DataType | None,
        shape: Sequence[Any] | ir.Shape | None,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Insert `op` before another node, for the same module; returns its output, called `name`, or briefly where
        nobody will look."""
        node = ir.node(op, list(inputs), dict(attributes or {}), domain=domain, name=name_beside(before, op))
        if name is None:
            name, self._count = f"_{self._count}", self._count + 1
        output = node.outputs[0]
        output.name = name
        if dtype is not None:
            output.dtype = dtype
        output.shape = None if shape is None else ir.Shape(list(shape))
        self.graph.insert_before(before, node)
        return output

    def replace(self, node: ir.Node, value: ir.Value) -> None:
        """Let everything read `value` in place of the first output of `node`, and remove the node.

        A graph output keeps its name: `value` takes it over.
        """
        old = node.outputs[0]
        if old.is_graph_output():
            value.name, old.name = old.name, f"{old.name}_replaced"
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def _free(self, name: str) -> str:
        candidate, count = name, 0
        while candidate in self.graph.initializers:
            count += 1
            candidate = f"{name}_{count}"
        return candidate


def array(value: ir.Value | None) -> np.ndarray | None:
    """The constant that a value holds, or `None`."""
    tensor = None if value is None else value.const_value
    return None if tensor is None else tensor.numpy()


def value_of(value: ir.Value | None) -> np.ndarray:
    """The constant that a value surely holds."""
    found = array(value)
    assert found is not None
    return found


def is_constant(value: ir.Value | None) -> bool:
    """True for what is computed from constants alone, whatever the inputs of the network are."""
    if value is None or value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and all(map(is_constant, node.inputs))


def producer(value: ir.Value | None, op: str, domain: str = "") -> ir.Node | None:
    """The node that makes `value`, if it is an `op`."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op and node.domain == domain else None


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value."""
    return [node for node, _ in value.uses()]


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value that is no output of the graph."""
    found = readers(value)
    return found[0] if len(found) == 1 and not value.is_graph_output() else None


def integer(node: ir.Node, name: str) -> int:
    """An integer attribute."""
    return int(node.attributes[name].as_int())


def width_of(node: ir.Node) -> int:
    """The width of one of brecq's own quantizers or constants."""
    return max(2, (integer(node, "high") - integer(node, "low")).bit_length())


def brecq_nodes(graph: ir.Graph, op: str) -> list[ir.Node]:
    """The nodes of one of brecq's own operators, in order."""
    return [node for node in graph if node.domain == DOMAIN and node.op_type == op]
