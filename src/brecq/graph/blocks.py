"""Blocks: each a graph module of its own over the parameters and fake-quantizers of the whole prepared graph.

What is learned inside a block is therefore learned in the network. A block takes the activations it needs as
positional arguments and returns a tuple of those that later blocks, or the network's output, need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from brecq.graph import ops
from brecq.graph.dataflow import Dataflow
from brecq.graph.partition import BlockSpec

Values = dict[str, Tensor]
"""Activations by the name of the node that made them."""


@dataclass(frozen=True)
class Block:
    """A block ready to run.

    Attributes:
        name: e.g. `layer1.0`.
        module: takes the tensors of `inputs`, returns a tuple of those of `outputs`.
        inputs, outputs: names of the activations.
        layers: names of its weighted operators.
    """

    name: str
    module: GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]

    def __call__(self, values: Values) -> Values:
        results = self.module(*(values[name] for name in self.inputs))
        return dict(zip(self.outputs, results, strict=True))


@dataclass(frozen=True)
class Network:
    """A prepared graph cut into blocks.

    Attributes:
        graph: the whole prepared graph. blocks: in order of execution.
        inputs: names of the network's inputs. result: structure of names that rebuilds the network's output.
    """

    graph: GraphModule
    blocks: list[Block]
    inputs: tuple[str, ...]
    result: Any

    def output(self, values: Values) -> Any:
        """The network's output from the activations of its blocks."""
        tree = pytree.tree_map_only(_Name, lambda name: values[name.text], self.result)
        flat = list(tree) if isinstance(tree, (list, tuple)) else [tree]
        return flat[0] if len(flat) == 1 else tuple(flat)

    def last_use(self) -> dict[str, int]:
        """For each activation the index of the last block that reads it (the number of blocks: network output)."""
        uses = {name: i for i, block in enumerate(self.blocks) for name in block.inputs}
        for name in pytree.tree_leaves(self.result):
            if isinstance(name, _Name):
                uses[name.text] = len(self.blocks)
        return uses


@dataclass(frozen=True)
class _Name:
    text: str


def extract(prepared: GraphModule, specs: Sequence[BlockSpec]) -> Network:
    """Cut a prepared graph at the given places. Running the blocks in order gives the graph's output bit for bit."""
    flow = Dataflow(prepared)
    nodes = list(prepared.graph.nodes)
    owner = _owners(flow, nodes, specs)
    layers = {node: layer for node, layer in zip(flow.ops, flow.layers, strict=True) if layer}
    output = next(node for node in nodes if node.op == "output")
    blocks = [
        _extract(prepared, spec, [n for n in nodes if owner.get(n) == i], owner, i, layers)
        for i, spec in enumerate(specs)
    ]
    inputs = tuple(node.name for node in nodes if node.op == "placeholder")
    result = pytree.tree_map_only(Node, lambda node: _Name(node.name), output.args[0])
    return Network(prepared, blocks, inputs, result)


def _owners(flow: Dataflow, nodes: list[Node], specs: Sequence[BlockSpec]) -> dict[Node, int]:
    """The block of each operator and fake-quantizer.

    An activation's quantizer belongs to the block that makes the activation, unless others need it in float as well:
    then to the one block that reads it quantized, so that only one tensor crosses the border.
    """
    owner = {flow.ops[p]: i for i, spec in enumerate(specs) for p in range(spec.start, spec.stop)}
    for node in nodes:
        if node.op == "call_module":
            source: Any = node.args[0]
            reading = {owner[user] for user in node.users if user in owner}
            bypassed = any(user is not node and owner.get(user) != owner.get(source) for user in source.users)
            if source in owner and not (bypassed and len(reading) == 1):
                owner[node] = owner[source]
    for node in reversed(nodes):
        if node.op == "call_module" and node not in owner:  # weights, biases and network inputs: to their first reader
            readers = [owner[user] for user in node.users if user in owner]
            if readers:
                owner[node] = min(readers)
    return owner


def _extract(
    prepared: GraphModule,
    spec: BlockSpec,
    mine: list[Node],
    owner: dict[Node, int],
    index: int,
    layers: dict[Node, str],
) -> Block:
    graph = Graph()
    copies: dict[Node, Node] = {}

    def constant(node: Node) -> bool:
        """Parameters, and their fake-quantizers when another block owns them (shared weights): copied everywhere."""
        return node.op == "get_attr" or (node.op == "call_module" and constant(node.args[0]))  # type: ignore[arg-type]

    def external(node: Node) -> list[Node]:
        if ops.is_size(node):
            return [found for source in node.all_input_nodes for found in external(source)]
        return [] if constant(node) or owner.get(node) == index else [node]

    wanted = [found for node in mine for source in node.all_input_nodes for found in external(source)]
    # Sizes are taken from an input of the block's own; what only a size was read from is no input.
    read = [s for node in mine for s in node.all_input_nodes if not ops.is_size(s)]
    inputs = [node for node in dict.fromkeys(wanted) if node in read]
    if not inputs and wanted:
        inputs = wanted[:1]
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)

    def copy(node: Node) -> Node:
        if node in copies:
            return copies[node]
        if node.target is ops.aten.sym_size.int and owner.get(node.args[0]) != index:  # type: ignore[arg-type]
            source, dim = _size_source(node, inputs)
            copies[node] = graph.call_function(ops.aten.sym_size.int, (copies[source], dim))
        else:
            copies[node] = graph.node_copy(node, copy)
        return copies[node]

    for node in mine:
        copy(node)
    outputs = [
        node
        for node in mine
        if not constant(node)
        and any(owner.get(user, -1) != index and not ops.is_size(user) for user in node.users)
        and ops.is_tensor(node)
    ]
    graph.output(tuple(copies[node] for node in outputs))
    module = GraphModule(prepared, graph)
    return Block(
        spec.name,
        module,
        tuple(node.name for node in inputs),
        tuple(node.name for node in outputs),
        tuple(layers[node] for node in mine if node in layers),
    )


def _size_source(size: Node, inputs: list[Node]) -> tuple[Node, int]:
    """An input of the block, and its dimension, of the same (symbolic) size."""
    wanted = str(size.meta["val"])
    for node in inputs:
        for dim, extent in enumerate(node.meta["val"].shape):
            if str(extent) == wanted:
                return node, dim
    raise AssertionError(f"no input of the block has the size {wanted} of {size.name}")
