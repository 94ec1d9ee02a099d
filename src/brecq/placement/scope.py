"""The quantization scope: for every operator of a prepared graph, what is quantized, or why it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from brecq.capture.batch_norm import UNFOLDED
from brecq.graph import ops
from brecq.graph.dataflow import Dataflow, resolve
from brecq.graph.fold import get_tensor
from brecq.graph.reach import activation_end
from brecq.partition.cut import BlockSpec
from brecq.placement.plan import END, REASON
from brecq.placement.prepare import fake_quantize_node, grid_of, input_quantizer
from brecq.report import ScopeEntry

_PRODUCT = "a product of two activations, no weight"

_REASONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a look-up of rows in a table, no arithmetic", ("embedding",)),
    ("recurrent, computed in float step by step", ("gru", "lstm", "rnn")),
    ("normalization", ("norm", "softmax", "logsumexp")),
    (_PRODUCT, ("matmul", "mm", "bmm", "baddbmm", "attention", "einsum", "dot")),
    ("pooling or reduction, computed in float",
     ("pool", "mean", "sum", "var", "std", "amax", "amin", "max", "min", "median", "prod", "topk")),
    ("interpolation, computed in float", ("upsample", "interpolate", "grid_sampler")),
)  # fmt: skip
"""Why an operator without a weight of its own computes in float, by words in its name."""


_INNER = "part of a layer's activation function, quantized behind the last of these operators"


def scope(prepared: GraphModule, specs: Sequence[BlockSpec]) -> list[ScopeEntry]:
    """One entry per operator that computes on activations, in program order."""
    flow = Dataflow(prepared)
    block_of = {position: spec.name for spec in specs for position in range(spec.start, spec.stop)}
    functions = {
        member for node, layer in zip(flow.ops, flow.layers, strict=True) if layer for member in _between(node)
    }
    counted: set[str] = set()
    ends = {_weight(node).target: node.meta[END] for node in flow.ops if END in node.meta and ops.kind(node)}
    entries = []
    for position, node in enumerate(flow.ops):
        layer = flow.layers[position]
        if not layer and ops.moves(node):
            continue
        table = node.target is ops.aten.embedding.default
        weights = _weights(prepared, node.args[1]) if layer else _weights(prepared, node.args[0]) if table else ""
        inputs = _inputs(prepared, node)
        output = _output(prepared, activation_end(node) if layer else node)
        if layer:
            reason = _layer_reason(flow, node, weights, inputs, ends)
        elif table and weights != "float":
            reason = "its table is the weight of a layer, and is stored once"
        elif UNFOLDED in node.meta:
            reason = node.meta[UNFOLDED]
        elif node in functions:
            reason = _INNER if output == "float" else "activation function of a layer, quantized behind it"
        else:
            reason = _reason(flow, node, inputs, output)
        entries.append(
            ScopeEntry(
                op=node.name,
                layer=layer or flow.paths[position],
                block=block_of[position],
                kind=ops.kind(node) or _written(node),
                weights=weights,
                inputs=inputs,
                output=output,
                reason=reason,
                parameters=_parameters(prepared, flow, node, counted),
            )
        )
    return entries


def _between(layer: Node) -> list[Node]:
    """The operators of the activation function behind a layer, if what leaves it is quantized."""
    end = activation_end(layer)
    if end is layer or not any(user.op == "call_module" for user in end.users):
        return []
    found, stack = {end}, [end]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source is not layer and source not in found and source.target in ops.ELEMENTWISE:
                found.add(source)
                stack.append(source)
    return list(found)


def _weights(graph: GraphModule, weight: Any) -> str:
    module = fake_quantize_node(graph, weight)
    return "float" if module is None else module.describe()


def _inputs(graph: GraphModule, node: Node) -> str:
    if ops.kind(node):
        module = input_quantizer(graph, node)
        return "float" if module is None else module.describe()
    grids = [
        "float" if module is None else module.describe()
        for source in node.all_input_nodes
        if not ops.is_size(source) and resolve(source).op != "get_attr" and _is_float(source)
        for module in [grid_of(graph, source)]
    ]
    return ", ".join(sorted(set(grids))) or ("integers" if node.all_input_nodes else "")


def _output(graph: GraphModule, node: Node) -> str:
    if not _is_float(node):
        return "integers"
    readers = [fake_quantize_node(graph, user) for user in node.users]
    found = {module.describe() for module in readers if module is not None and module.enabled}
    if not found and (module := grid_of(graph, node)) is not None:
        found = {module.describe()}
    return ", ".join(sorted(found)) or "float"


def _is_float(node: Node) -> bool:
    value: Any = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        value = next((part for part in value if isinstance(part, torch.Tensor)), None)
    return not isinstance(value, torch.Tensor) or value.is_floating_point()


def _parameters(graph: GraphModule, flow: Dataflow, node: Node, counted: set[str]) -> int:
    """Numbers in the parameters that an operator reads, and in other constants but the statistics of a batch norm;
    those that several read count for the first."""
    names = {str(source.target) for source in _constants(flow, node) - _statistics(node)} - counted
    counted |= names
    values = [get_tensor(graph, name) for name in names]
    return sum(value.numel() for value in values if isinstance(value, torch.Tensor))


def _constants(flow: Dataflow, node: Node) -> set[Node]:
    """The parameters and buffers that an operator reads, as they are or computed with the batch size."""
    seen: set[Node] = set()
    stack = [source for source in node.all_input_nodes if source in flow.constants]
    while stack:
        source = stack.pop()
        if source not in seen:
            seen.add(source)
            stack.extend(source.all_input_nodes)
    return {source for source in seen if source.op == "get_attr"}


def _fixed_factors(flow: Dataflow, node: Node) -> int:
    """How many factors of a product are constants; the masks of attention are none."""
    factors = node.args[:3] if "attention" in ops.op_name(node) else node.all_input_nodes
    return sum(isinstance(factor, Node) and factor in flow.constants for factor in factors)


def _statistics(node: Node) -> set[Node]:
    """The running mean and variance of a batch norm: buffers, which are no parameters."""
    if node.target is not ops.aten.batch_norm.default:
        return set()
    return {source for source in node.args[3:5] if isinstance(source, Node)}


def _weight(layer: Node) -> Any:
    return resolve(layer.args[1])  # type: ignore[arg-type]


def _layer_reason(flow: Dataflow, node: Node, weights: str, inputs: str, ends: Mapping[Any, str]) -> str:
    """`ends`: the weights of the first and the last layer, by the names of the tensors; others may read them too."""
    weight = _weight(node)
    if weights == "float":
        if weight.op == "get_attr":
            return str(node.meta.get(REASON, "32 bits asked for"))
        return f"its weight is computed from {'the batch size' if weight in flow.constants else 'activations'}"
    end = f"{node.meta[END]} layer (first_last)" if END in node.meta else ""
    if not end and weight.op == "get_attr" and weight.target in ends:
        end = f"shares its weight with the {ends[weight.target]} layer (first_last)"
    if REASON in node.meta:
        return str(node.meta[REASON])
    return "activations: 32 bits asked for" if inputs == "float" else end


def float_weights(entries: Sequence[ScopeEntry], most: int = 6) -> str:
    """The weights and other parameters left in float by their share, largest first; empty without any of 0.1 %."""
    total = sum(entry.parameters for entry in entries)
    groups: dict[tuple[str, str], int] = {}
    for entry in entries:
        if entry.parameters and entry.weights in ("", "float"):
            key = (f"{entry.layer or entry.op}" if 1000 * entry.parameters >= total else entry.kind, entry.reason)
            groups[key] = groups.get(key, 0) + entry.parameters
    shares = sorted(
        ((100 * count / total, *key) for key, count in groups.items() if 1000 * count >= total), reverse=True
    )
    listed = [f"{name} {share:.1f} % ({reason})" for share, name, reason in shares[:most]]
    rest = sum(share for share, _, _ in shares[most:])
    return "; ".join([*listed, *([f"others {rest:.1f} %"] if rest else [])])


def _reason(flow: Dataflow, node: Node, inputs: str, output: str) -> str:
    """Why an operator without a weight computes in float; empty if all that it reads and writes is quantized."""
    name = ops.op_name(node)
    if output == "integers":
        return "whole numbers or truth values, nothing to quantize"
    if not any(isinstance(source.meta.get("val"), (torch.Tensor, list, tuple)) for source in node.all_input_nodes):
        return "a constant"
    grids = {*inputs.split(", "), output}
    if node.target in ops.CONCAT or (node.target in ops.ADD and len(node.all_input_nodes) > 1):
        if "float" not in grids:
            return ""
        if output == "float" and node.target in ops.ADD:
            return "a sum that no layer reads as it is"
        if "float" not in inputs.split(", "):
            return "what it makes of quantized tensors is read by no layer as it is"
        return "not all that it joins is quantized"
    for reason, words in _REASONS:
        if any(word in name for word in words):
            fixed = _fixed_factors(flow, node) if reason is _PRODUCT else 0
            if fixed == 1:
                return "a product with a weight for each head, expert or sample: no linear layer"
            return "attention of learned queries, the same for all inputs" if fixed else reason
    if node.target in ops.ELEMENTWISE:
        return "computed in float, element by element"
    return f"computed in float: brecq has no integer form of {name}"


def _written(node: Node) -> str:
    """The operator as the network's author wrote it, where the program computes it by another."""
    name, types = ops.op_name(node), ops.module_types(node)
    if node.target is ops.aten.hardtanh.default and tuple(map(float, node.args[1:3])) == (0.0, 6.0):  # type: ignore[arg-type]
        return "relu6"
    if name.endswith("pool2d") and types and list(types.values())[-1].endswith("Pool1d"):
        return name.replace("2d", "1d")
    return name
