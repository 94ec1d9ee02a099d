"""The first and the last layers of a network, which many like to keep at more bits than the others.

First are the layers that read a network input with no layer before them. An output's last layer is the one at the
end of the longest way to it, so that in a stream of residual additions only the last block's layer counts, not every
layer that writes to the stream. Heads side by side (the parts of a concatenation, the factors of a product) all count.
A layer that only takes the mean of a distribution (one output behind a softmax, as detectors decode the sides of a
box) hides no end: those that make the distribution count, too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor
from torch.fx import GraphModule, Node

from brecq.graph import ops


def first_layers(graph: GraphModule, layers: Collection[Node]) -> set[Node]:
    """The layers that network inputs reach and no other layer does; of `layers` the first one if there are none."""
    depth = _depths(graph, layers)
    reached = {node for node in graph.graph.nodes if node.op == "placeholder"}
    for node in graph.graph.nodes:
        if any(source in reached for source in _sources(node)):
            reached.add(node)
    return {layer for layer in layers if depth[layer] == 1 and layer in reached} or set(list(layers)[:1])


def last_layers(graph: GraphModule, layers: Collection[Node], outputs: Sequence[Node] | None = None) -> set[Node]:
    """For each output of the network (or each of `outputs`) the layers at the end of the longest way to it."""
    means = {layer for layer in layers if is_mean(layer)}
    layers = [layer for layer in layers if layer not in means]
    depth = _depths(graph, layers)
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    before = _layers_before(graph, layers)
    output = next(node for node in graph.graph.nodes if node.op == "output")
    last: set[Node] = set()
    for result in output.all_input_nodes if outputs is None else outputs:
        ends: set[Node] = set()
        stack, seen = [result], set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            sources = _sources(node)
            if node in layers:
                ends.add(node)
            elif node.target in ops.ADD and sources:
                stack.append(max(sources, key=lambda source: (depth[source], order[source])))
            else:
                stack += sources
        last |= ends - {earlier for end in ends for earlier in before[end]}
    return last | (means if outputs is None else set())


def is_mean(layer: Node) -> bool:
    """True for a layer with one output that reads a softmax, as it is or reshaped."""
    source = layer.args[0]
    while isinstance(source, Node) and ops.moves(source):
        source = source.args[0]
    softmax = isinstance(source, Node) and source.op == "call_function" and "softmax" in ops.op_name(source)
    value = layer.meta.get("val")
    axis = 1 if ops.kind(layer) != "linear" else -1
    return softmax and isinstance(value, Tensor) and value.dim() > 1 and value.shape[axis] == 1


def _sources(node: Node) -> list[Node]:
    return [source for source in node.all_input_nodes if not ops.is_size(source)]


def _depths(graph: GraphModule, layers: Collection[Node]) -> dict[Node, int]:
    """Layers on the longest way from an input to each node, itself included."""
    depth: dict[Node, int] = {}
    for node in graph.graph.nodes:
        depth[node] = max((depth[source] for source in _sources(node)), default=0) + (node in layers)
    return depth


def _layers_before(graph: GraphModule, layers: Collection[Node]) -> dict[Node, set[Node]]:
    """The layers that each node depends on."""
    before: dict[Node, set[Node]] = {}
    for node in graph.graph.nodes:
        before[node] = set()
        for source in _sources(node):
            before[node] |= before[source] | ({source} if source in layers else set())
    return before
