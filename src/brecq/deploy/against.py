"""How far every tensor of an exported file is from the float network's: what the file loses where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from brecq.capture.export import capture
from brecq.converted.grids import Grid, grid_of
from brecq.data.collect import stream
from brecq.deploy.complete import as_converted
from brecq.deploy.runtime import batches, check_any, open_file, traceable
from brecq.deploy.samples import together
from brecq.deploy.simulate import simulate
from brecq.graph import ops
from brecq.graph.outputs import returned
from brecq.graph.reach import activation_end
from brecq.report import sqnr

if TYPE_CHECKING:
    from brecq.result import QuantResult

_CLAMPS = {
    ops.aten.relu.default, ops.aten.clamp.default, ops.aten.clamp_min.default, ops.aten.hardtanh.default,
}  # fmt: skip

_Key = tuple[str, str, int]


@dataclass(frozen=True)
class Distance:
    """One quantized tensor of a file, or an `output N`, against the float network's: sums of squares.

    Errors of all that comes before it are in it: the file ran as a whole.
    """

    tensor: str
    signal: float
    noise: float

    @property
    def sqnr(self) -> float:
        """In dB."""
        return sqnr(self.signal, self.noise)

    @property
    def is_output(self) -> bool:
        """Whether it is what the file returns, and not a tensor inside."""
        return self.tensor.split(" ")[0] == "output"


@torch.no_grad()
def distances(
    result: QuantResult,
    path: Path | str,
    model: nn.Module,
    data: Iterable[Any],
    *,
    format: str | None = None,
    batch_size: int = 16,
) -> list[Distance]:
    """Run an exported file and the float network side by side; the tensors that lost most come first. Left out is what
    completion writes otherwise than the network (a mean as a pooling), and all but the outputs of a file inside which
    its runtime shows nothing.

    Args:
        result: that the file was exported from. model: its float network. data: as for `verify`.

    Raises:
        ConfigError, CaptureError, DataError, ExportError: as `verify`.
    """
    runner, kind = open_file(path, format)
    trace = getattr(runner, "trace", None)
    completed = simulate(result, kind.arithmetic).completed if kind.arithmetic else as_converted(result)
    exactly = together(runner, completed)
    floating = capture(model, result.example_inputs)
    grids = {name: grid_of(node) for name, node in completed.quantizers().items()}
    places = _places(completed.quantizers(), completed.graph, floating) if trace is not None else {}
    sums: dict[str, list[float]] = {}
    names = [name for name, _ in returned(floating)]
    for part in stream(data, model=result.converted):
        for inputs in (each for batch in batches(part, batch_size, exactly) for each in traceable(runner, batch)):
            arrays = [value.numpy() for value in inputs]
            outputs, codes = (runner(*arrays), {}) if trace is None else trace(*arrays)
            watched = _Watched(floating, set(places.values()))
            expected = pytree.tree_leaves(watched.run(*inputs, enable_io_processing=False))
            pairs = {f"output {name}".rstrip(): (value, torch.from_numpy(outputs[number]))
                     for number, (name, value) in enumerate(zip(names, expected, strict=True))
                     if isinstance(value, Tensor)}  # fmt: skip
            for name, node in places.items():
                if name in codes:
                    pairs[name] = (watched.values[node], _real(torch.from_numpy(codes[name]), grids[name]))
            for name, (value, found) in pairs.items():
                if value.shape == found.shape:
                    entry = sums.setdefault(name, [0.0, 0.0])
                    entry[0] += value.double().square().sum().item()
                    entry[1] += (value.double() - found.double()).square().sum().item()
    check_any(sums, exactly)
    return sorted((Distance(name, *both) for name, both in sums.items()), key=lambda each: each.sqnr)


def _real(codes: Tensor, grid: Grid) -> Tensor:
    return (codes.double() - grid.zero_point) * grid.scale


def _places(quantizers: Mapping[str, Node], graph: GraphModule, floating: GraphModule) -> dict[str, Node]:
    """The node of the float network that computes what each quantizer is given; without those that have none.

    Operators are found by their module, their kind and their place among those of it. A quantizer that took over the
    clamps behind an operator gives what these gave.
    """
    by_key = {key: node for node, key in _keys(floating).items()}
    keys = _keys(graph)
    present = set(keys.values())
    found: dict[str, Node] = {}
    for name, quantizer in quantizers.items():
        key = keys.get(quantizer.args[0])  # type: ignore[arg-type]
        node = None if key is None else by_key.get(key)
        if node is None:
            continue
        end = activation_end(node)
        folded = _between(node, end)
        if folded and all(each.target in _CLAMPS and _keys_of(each, floating) not in present for each in folded):
            node = end
        found[name] = node
    return found


def _between(node: Node, end: Node) -> list[Node]:
    """The operators from behind `node` to `end`, where they are a chain."""
    chain: list[Node] = []
    while end is not node and end.op == "call_function":
        chain.append(end)
        end = end.all_input_nodes[0]
    return chain


def _keys_of(node: Node, graph: GraphModule) -> _Key:
    return _keys(graph)[node]


def _keys(graph: GraphModule) -> dict[Node, _Key]:
    """Module, kind and number of every operator and input."""
    seen: Counter[tuple[str, str]] = Counter()
    found = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            name = ("", "input")
        elif node.op == "call_function" and not str(node.target).startswith("quantized_decomposed"):
            name = (ops.module_path(node), ops.op_name(node))
        else:
            continue
        found[node] = (*name, seen[name])
        seen[name] += 1
    return found


class _Watched(Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, graph: GraphModule, nodes: set[Node]) -> None:
        super().__init__(graph)
        self.nodes, self.values = nodes, dict[Node, Tensor]()

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.nodes:
            self.values[n] = value
        return value
