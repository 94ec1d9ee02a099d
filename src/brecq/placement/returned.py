"""Inputs that a network returns, as they are or in another shape: they stay what they were.

A quantizer behind an input is meant for the layers that read it. What only moves elements of the input to the output
would pass on codes of it, where the float network passes on the input.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import GraphModule, Node

from brecq.graph import ops, outputs


def return_inputs(graph: GraphModule, is_quantizer: Callable[[Node], bool]) -> None:
    """Let outputs that only move elements of inputs read these in front of their quantizers, in place.

    Args:
        is_quantizer: of nodes with one source, which they put on a grid, or take from one.
    """
    output = graph.graph.output_node()
    raw: dict[Node, Node] = {}
    for node in dict.fromkeys(output.all_input_nodes):
        if _only_moves(node, is_quantizer):
            output.replace_input_with(node, _unquantized(graph, node, is_quantizer, raw))
    graph.graph.eliminate_dead_code()


def describe(graph: GraphModule) -> list[str]:
    """A sentence of the outputs that are inputs, none without one."""
    named = outputs.returned(graph)
    same = [name for name, leaf in named if isinstance(leaf, Node) and _only_moves(leaf, lambda node: False)]
    if not same:
        return []
    which = f"output{'s' if len(same) > 1 else ''} {', '.join(same)}".rstrip()
    return [f"{which}: inputs of the network, returned as they came"]


def _only_moves(node: Node, is_quantizer: Callable[[Node], bool]) -> bool:
    """True if a node holds elements of inputs (and zeros), up to the quantizers of these."""
    if node.op == "placeholder":
        return True
    sources = _sources(node)
    passes = ops.moves(node) or node.target in ops.CONCAT or is_quantizer(node)
    return passes and bool(sources) and all(_only_moves(source, is_quantizer) for source in sources)


def _sources(node: Node) -> list[Node]:
    return [source for source in node.all_input_nodes if not ops.is_size(source)]


def _unquantized(graph: GraphModule, node: Node, is_quantizer: Callable[[Node], bool], raw: dict[Node, Node]) -> Node:
    """The same without quantizers; what has none behind it stays the node that it is."""
    if node.op == "placeholder":
        return node
    if node not in raw:
        made = {source: _unquantized(graph, source, is_quantizer, raw) for source in _sources(node)}
        if is_quantizer(node):
            raw[node] = made[_sources(node)[0]]
        elif all(source is new for source, new in made.items()):
            raw[node] = node
        else:
            with graph.graph.inserting_before(node):
                raw[node] = graph.graph.node_copy(node, lambda source: made.get(source, source))
    return raw[node]
