"""Blocks: each a graph module of its own over the parameters and fake-quantizers of the whole prepared graph.

What is learned inside a block is therefore learned in the network. A block takes the activations it needs as
positional arguments and returns a tuple of those that later blocks, or the network's output, need.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import SymInt, Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from brecq.graph import ops
from brecq.graph.dataflow import Dataflow, resolve
from brecq.partition.cut import BlockSpec

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
        targets: those of `outputs` that reconstruction compares: floating point, not class indices or masks.
    """

    name: str
    module: GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]
    targets: tuple[str, ...]

    def __call__(self, values: Values) -> Values:
        results = self.module(*(values[name] for name in self.inputs))
        return dict(zip(self.outputs, results, strict=True))

    def compared(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Of what the module returned, the values of `targets`."""
        return [value for name, value in zip(self.outputs, outputs, strict=True) if name in self.targets]


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

    @property
    def returns_learned(self) -> bool:
        """Whether the network returns anything that can be learned from."""
        return bool(self.ends)

    @property
    def ends(self) -> tuple[str, ...]:
        """Names of what the network returns that can be learned from: batches of floating-point samples."""
        targets = {name for block in self.blocks for name in block.targets}
        places = (getattr(place, "text", None) for place in pytree.tree_leaves(self.result))
        return tuple(dict.fromkeys(name for name in places if name in targets))

    def run(self, values: Values, wanted: Sequence[str] = ()) -> Values:
        """The activations `wanted`, from the network's inputs `values`. Others are forgotten once they are read."""
        values, last = dict(values), self.last_use()
        for i, block in enumerate(self.blocks):
            values.update(block(values))
            for name in [name for name in values if last.get(name, i) <= i and name not in wanted]:
                del values[name]
        return {name: values[name] for name in wanted}

    def output(self, values: Values) -> Any:
        """The network's output from the activations of its blocks.

        What is learned only: constants, numbers and tensors that are no batch of samples (a mean over it) are left
        out of a tuple or list, and are `None` elsewhere.
        """
        tree = pytree.tree_map_only(_Name, lambda name: values.get(name.text), self.result)
        flat = [part for part in tree if part is not None] if isinstance(tree, (list, tuple)) else [tree]
        return flat[0] if len(flat) == 1 else tuple(flat)

    def last_use(self) -> dict[str, int]:
        """For each activation the index of the last block that reads it (the number of blocks: network output)."""
        uses = {name: i for i, block in enumerate(self.blocks) for name in block.outputs}
        uses |= {name: i for i, block in enumerate(self.blocks) for name in block.inputs}
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
    members: list[list[Node]] = [[] for _ in specs]
    for node in nodes:
        if node in owner:
            members[owner[node]].append(node)
    inputs_of = [_inputs(flow, mine, owner, index) for index, mine in enumerate(members)]
    cut = _Cut(flow, prepared, owner, layers, {node for found in inputs_of for node in found})
    blocks = [_extract(cut, spec, i, members[i], inputs_of[i]) for i, spec in enumerate(specs)]
    inputs = tuple(node.name for node in nodes if node.op == "placeholder")
    learned = {name for block in blocks for name in block.outputs} | set(inputs)
    result = pytree.tree_map(
        lambda leaf: _Name(leaf.name) if isinstance(leaf, Node) and leaf.name in learned else None, output.args[0]
    )
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


@dataclass(frozen=True)
class _Cut:
    """What all blocks of a cut are made from. `crossing`: the nodes that some block takes as an input."""

    flow: Dataflow
    prepared: GraphModule
    owner: dict[Node, int]
    layers: dict[Node, str]
    crossing: set[Node]


def _extract(cut: _Cut, spec: BlockSpec, index: int, mine: list[Node], inputs: list[Node]) -> Block:
    flow, owner, layers = cut.flow, cut.owner, cut.layers
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)

    def copy(node: Node) -> Node:
        if node in copies:
            return copies[node]
        if node.target in ops.SIZES and owner.get(node.args[0]) != index:  # type: ignore[arg-type]
            copies[node] = _size(graph, node, {source: copies[source] for source in inputs})
        else:
            copies[node] = graph.node_copy(node, copy)
        return copies[node]

    for node in mine:
        copy(node)
    made = [node for node in mine if node not in flow.constants]
    leaving = dict.fromkeys(node for node in made if _leaves(flow, node, owner, index))
    outputs = [node for node in made if node in leaving or node in cut.crossing]  # others read but the size of these
    targets = [node for node in leaving if _is_target(node)]
    if not targets:  # what it makes for others cannot be compared (class indices, a mean): its last activation can
        targets = [node for node in made if _is_target(node) and _batch(flow, node)][-1:]
        outputs += [node for node in targets if node not in outputs]
    graph.output(tuple(copies[node] for node in outputs))
    module = GraphModule(cut.prepared, graph)
    return Block(
        spec.name,
        module,
        tuple(node.name for node in inputs),
        tuple(node.name for node in outputs),
        tuple(layers[node] for node in mine if node in layers),
        tuple(node.name for node in targets),
    )


def _inputs(flow: Dataflow, mine: list[Node], owner: dict[Node, int], index: int) -> list[Node]:
    """Of the nodes of other blocks that these read, those that become inputs.

    Sizes are taken from an input of the block's own; what only a size was read from is no input.
    """

    def external(node: Node) -> list[Node]:
        if ops.is_size(node) or node in flow.constants:  # a block copies constants, whoever owns their fake-quantizers
            return [found for source in node.all_input_nodes for found in external(source)]
        return [] if owner.get(node) == index else [node]

    wanted = [found for node in mine for source in node.all_input_nodes for found in external(source)]
    read = {s for node in mine for s in node.all_input_nodes if not ops.is_size(s)}
    inputs = [node for node in dict.fromkeys(wanted) if node in read]
    if not inputs and wanted:
        inputs = wanted[:1]
    for (
        node
    ) in mine:  # a size that none of them has is one of the network's inputs', or read off the tensor that has it
        for size in (s for s in node.all_input_nodes if ops.is_size(s)):
            for found in _sizes_from(size, owner, index):
                if found.args[0] not in inputs and _source_of_size(found, inputs) is None:
                    given = _source_of_size(found, flow.arguments)
                    inputs.append(found.args[0] if given is None else given[0])  # type: ignore[arg-type]
    return inputs


def _leaves(flow: Dataflow, node: Node, owner: dict[Node, int], index: int) -> bool:
    """True if another block reads the node, or the network returns it as a batch of samples."""
    readers = [user for user in node.users if owner.get(user, -1) != index and not ops.is_size(user)]
    if not readers or not ops.is_tensor(node):
        return False
    return any(user.op != "output" for user in readers) or _batch(flow, node)


def _batch(flow: Dataflow, node: Node) -> bool:
    return flow.is_batch(resolve(node))


def _is_target(node: Node) -> bool:
    return ops.is_tensor(node) and node.meta["val"].is_floating_point()


def _size(graph: Graph, size: Node, inputs: dict[Node, Node]) -> Node:
    """A (symbolic) size, read off an input of the block: a dimension of it, or a multiple of one."""
    found = _source_of_size(size, list(inputs))
    assert found is not None, f"no input of the block has the size {size.meta['val']} of {size.name}"
    node, dim, factor = found
    one = graph.call_function(ops.aten.sym_size.int, (inputs[node], dim))
    return one if factor == 1 else graph.call_function(operator.mul, (one, factor))


def _source_of_size(size: Node, inputs: Sequence[Node]) -> tuple[Node, int, int] | None:
    """The input and dimension that a size is a multiple of, and the factor."""
    wanted = size.meta["val"].node.expr
    extents = [(node, dim, e) for node in inputs for dim, e in enumerate(node.meta["val"].shape)]
    for node, dim, extent in extents:
        if isinstance(extent, SymInt) and extent.node.expr == wanted:
            return node, dim, 1
    for node, dim, extent in extents:
        factor = wanted / extent.node.expr if isinstance(extent, SymInt) else None
        if factor is not None and factor.is_Integer:
            return node, dim, int(factor)
    return None


def _sizes_from(size: Node, owner: dict[Node, int], index: int) -> list[Node]:
    """The sizes of other blocks' tensors that a size is computed from."""
    if size.target in ops.SIZES:
        return [] if owner.get(size.args[0]) == index else [size]  # type: ignore[arg-type]
    return [found for source in size.all_input_nodes for found in _sizes_from(source, owner, index)]
