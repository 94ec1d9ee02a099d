"""The quantization scope: for every operator of a prepared graph, what is quantized, or why it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule, Node

from brecq.graph import ops
from brecq.graph.dataflow import Dataflow, resolve
from brecq.graph.partition import BlockSpec
from brecq.graph.placement import activation_end
from brecq.graph.prepare import fake_quantize_node, input_quantizer
from brecq.report import ScopeEntry


def scope(prepared: GraphModule, specs: Sequence[BlockSpec]) -> list[ScopeEntry]:
    """One entry per operator that computes on activations, in program order."""
    flow = Dataflow(prepared)
    block_of = {position: spec.name for spec in specs for position in range(spec.start, spec.stop)}
    entries = []
    for position, node in enumerate(flow.ops):
        layer = flow.layers[position]
        if not layer and node.target in ops.MOVEMENT:
            continue
        weights = _weights(prepared, node) if layer else ""
        inputs = _inputs(prepared, node)
        entries.append(
            ScopeEntry(
                op=node.name,
                layer=layer or flow.paths[position],
                block=block_of[position],
                kind=ops.kind(node) or ops.op_name(node),
                weights=weights,
                inputs=inputs,
                output=_output(prepared, activation_end(node) if layer else node),
                reason=_reason(node, bool(layer), weights, inputs),
            )
        )
    return entries


def _weights(graph: GraphModule, node: Node) -> str:
    module = fake_quantize_node(graph, node.args[1])
    return "float" if module is None else module.describe()


def _inputs(graph: GraphModule, node: Node) -> str:
    if ops.kind(node):
        module = input_quantizer(graph, node)
        return "float" if module is None else module.describe()
    grids = {
        "float" if module is None else module.describe()
        for source in node.all_input_nodes
        if not ops.is_size(source) and resolve(source).op != "get_attr"
        for module in [_direct(graph, source)]
    }
    return ", ".join(sorted(grids)) or "float"


def _direct(graph: GraphModule, node: Node) -> Any:
    while True:
        module = fake_quantize_node(graph, node)
        if module is not None or node.op != "call_function" or node.target not in ops.MOVEMENT:
            return module if module is not None and module.enabled else None
        node = node.args[0]  # type: ignore[assignment]


def _output(graph: GraphModule, node: Node) -> str:
    readers = [fake_quantize_node(graph, user) for user in node.users]
    found = {module.describe() for module in readers if module is not None}
    return ", ".join(sorted(found)) or "float"


def _reason(node: Node, layer: bool, weights: str, inputs: str) -> str:
    if layer:
        weight: Any = node.args[1]
        if weights == "float":
            computed = resolve(weight).op != "get_attr"
            return "its weight is computed from activations" if computed else "32 bits asked for"
        return "activations: 32 bits asked for" if inputs == "float" else ""
    if node.target in (ops.aten.matmul.default, ops.aten.bmm.default, ops.aten.scaled_dot_product_attention.default):
        return "a product of two activations, no weight"
    if "norm" in ops.op_name(node) or "softmax" in ops.op_name(node):
        return "normalization"
    return ""
