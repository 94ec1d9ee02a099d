"""Dataflow of a captured or prepared graph: operators in program order, what is live where, where it may be cut."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch.fx import GraphModule, Node

from brecq.graph import ops


class Dataflow:
    """Operators of a graph on activations in program order: fake-quantizers, size arithmetic and constants aside.

    Attributes:
        ops: the operator nodes. constants: nodes that depend on no activation.
        index: node to its position in `ops`.
        paths: module path of each operator.
        layers: name of the layer for weighted operators, empty for others.
        arguments: the network's inputs that are tensors.
        inputs: for each operator, the distinct activations it reads: positions of operators, or network inputs as
            negative numbers.
        outputs: how many of the activations the network returns.
    """

    def __init__(self, graph: GraphModule) -> None:
        placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self.arguments = [node for node in placeholders if ops.is_tensor(node)]
        self.batch = _batch_symbol(placeholders)
        self.constants = constants(graph.graph)
        self.ops = [
            n for n in graph.graph.nodes if n.op == "call_function" and not ops.is_size(n) and n not in self.constants
        ]
        self.index = {node: i for i, node in enumerate(self.ops)}
        self.paths = [ops.module_path(node) for node in self.ops]
        self.layers = layer_names(self.ops)
        outside = {node: -1 - i for i, node in enumerate(placeholders)}
        self.inputs: list[list[int]] = []
        for node in self.ops:
            read = (resolve(source) for source in node.all_input_nodes if not ops.is_size(source))
            known = [self.index.get(source, outside.get(source)) for source in read]
            self.inputs.append(list(dict.fromkeys(i for i in known if i is not None)))
        self.last_use = list(range(len(self.ops)))
        for i, sources in enumerate(self.inputs):
            for source in sources:
                if source >= 0:
                    self.last_use[source] = max(self.last_use[source], i)
        output = next(node for node in graph.graph.nodes if node.op == "output")
        for source in output.all_input_nodes:
            position = self.index.get(resolve(source))
            if position is not None and self.is_batch(self.ops[position]):
                self.last_use[position] = len(self.ops)
        self.outputs = sum(last == len(self.ops) for last in self.last_use)
        self._legal = self._legal_cuts()
        self._weighted = [0, *accumulate(bool(layer) for layer in self.layers)]

    def weighted(self, start: int, stop: int) -> int:
        """Number of weighted operators in a range."""
        return self._weighted[stop] - self._weighted[start]

    def has_join(self, start: int, stop: int) -> bool:
        """True if an operator in the range reads two or more activations."""
        return any(len(self.inputs[i]) > 1 for i in range(start, stop))

    def regions(self, start: int, stop: int, reach: int | None = None) -> Iterator[tuple[int, int]]:
        """Cut a range wherever a single activation is live: made in it or entering it, and still to be read in it.

        Args:
            reach: leave out routes that lead past more than so many weighted operators.
        """
        last: dict[int, int] = {i: i for i in range(start, stop)}
        for i in range(start, stop):
            for source in self.inputs[i]:
                if reach is None or self.weighted(max(source + 1, 0), i) <= reach:
                    last[source] = i
        born = [0] * (stop - start)
        dies = [0] * (stop - start)
        for source, end in last.items():
            born[max(source - start, 0)] += 1
            dies[end - start] += 1
        live = 0
        begin = start
        for i in range(start, stop - 1):
            live += born[i - start] - dies[i - start]
            if live <= 1 and self.can_cut(i + 1):
                yield begin, i + 1
                begin = i + 1
        yield begin, stop

    def crossing(self, position: int) -> Node | None:
        """The first operator before `position` whose output passes it and is no batch of samples."""
        return next(
            (n for i, n in enumerate(self.ops[:position]) if self.last_use[i] >= position and not self.is_batch(n)),
            None,
        )

    def can_cut(self, position: int) -> bool:
        """True if all that passes from before `position` to it or beyond are batches of samples: [N, ...] tensors."""
        return self._legal[position]

    def _legal_cuts(self) -> list[bool]:
        change = [0] * (len(self.ops) + 2)
        for i, node in enumerate(self.ops):
            if not self.is_batch(node):
                change[i + 1] += 1
                change[self.last_use[i] + 1] -= 1
        return [count == 0 for count in accumulate(change)]

    def is_batch(self, node: Node) -> bool:
        """True if the output is one tensor [N, ...] whose samples are of one size: [N, N] compares samples."""
        value: Any = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return False
        alike = not any(_counts(size, self.batch) for size in value.shape[1:])
        return alike and str(value.shape[0]) == self.batch

    def resolution(self, position: int) -> tuple[str, ...]:
        """Spatial size of an operator's output: what follows batch and channels."""
        value: Any = self.ops[position].meta.get("val")
        if not isinstance(value, torch.Tensor):
            return ()
        shape = value.shape[2:] if value.dim() == 4 else value.shape[1:]
        return tuple(str(size) for size in shape)


def constants(graph: torch.fx.Graph) -> set[Node]:
    """Nodes whose values depend on no activation: on parameters and numbers, and on the batch size at most.

    They are no activations: every block that reads one computes it anew (an expanded class token, a mask).
    """
    found: set[Node] = set()
    for node in graph.nodes:
        made = node.op in ("call_function", "call_module") and not ops.is_random(node) and not ops.is_size(node)
        known = all(source in found or ops.is_size(source) for source in node.all_input_nodes)
        if node.op == "get_attr" or (made and known):
            found.add(node)
    return found


def resolve(node: Node) -> Node:
    """The node that computed a value, seen through the fake-quantizers behind it."""
    while node.op == "call_module" and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def layer_names(nodes: list[Node]) -> list[str]:
    """The name of each weighted operator: its module's path, or its weight's name for functional calls."""
    names: list[str] = []
    seen: dict[str, int] = {}
    for node in nodes:
        if ops.kind(node) is None:
            names.append("")
            continue
        weight = resolve(node.args[1])  # type: ignore[arg-type]
        name = node.meta.get(ops.LAYER) or (str(weight.target) if weight.op == "get_attr" else node.name)
        for ending in (".weight", "_weight"):
            name = name.removesuffix(ending)
        if name.endswith("_folded"):
            name = ops.module_path(node) or name.removesuffix("_folded")
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names


def _counts(size: Any, batch: str) -> bool:
    """True if a size grows with the batch: heights and widths may be symbols, too."""
    return isinstance(size, torch.SymInt) and batch in {str(symbol) for symbol in size.node.expr.free_symbols}


def _batch_symbol(placeholders: list[Node]) -> str:
    for node in placeholders:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dim():
            return str(value.shape[0])
    return ""
