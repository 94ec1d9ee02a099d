"""How far each tensor of the quantized network is from the float network's, layer by layer, on a few samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.node import map_arg

from brecq.forward import even_slices
from brecq.graph.dataflow import Dataflow
from brecq.graph.ends import last_layers
from brecq.graph.outputs import returned
from brecq.graph.reach import activation_end
from brecq.placement.prepare import fake_quantize_node
from brecq.report import OutputNoise, TensorNoise

SAMPLES = 16
BINS = 48
_BATCH = 4


@torch.no_grad()
def tensor_noise(
    prepared: GraphModule, inputs: Sequence[Tensor], received: Sequence[Tensor]
) -> tuple[list[TensorNoise], list[OutputNoise]]:
    """Compare the network's outputs, and every layer's behind its activation function, with the float network's.

    Args:
        prepared: its fake-quantizers in hard mode. inputs: each [N, ...], on the graph's device; the first 16 count.
        received: what the quantized network gets in their place: the same, or what others quantized before it give.
    """
    flow = Dataflow(prepared)
    ends = {activation_end(node): layer for node, layer in zip(flow.ops, flow.layers, strict=True) if layer}
    outputs = _outputs(prepared)
    run = _Pairs(prepared, [*ends, *outputs.values()])
    for rows in even_slices(min(len(inputs[0]), SAMPLES), _BATCH):
        pairs = ((value[rows], other[rows]) for value, other in zip(inputs, received, strict=True))
        run.run(*pairs, enable_io_processing=False)
    last = {node: flow.layers[flow.index[node]] for node in flow.ops if flow.layers[flow.index[node]]}
    found = [
        OutputNoise(name, _makers(prepared, node, last), run.tallies[node].signal, run.tallies[node].noise)
        for name, node in outputs.items()
    ]
    return [run.tallies[node].result(layer, _grid(prepared, node)) for node, layer in ends.items()], found


def _outputs(graph: GraphModule) -> dict[str, Node]:
    """The floating-point tensors that a network returns; without those whose size depends on values, such as the
    samples that pass a threshold: they match nothing in the float network."""
    return {name: leaf for name, leaf in returned(graph) if isinstance(leaf, Node) and _is_comparable(leaf)}


def _is_comparable(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point() and not free_unbacked_symbols(value)


def _makers(graph: GraphModule, output: Node, layers: Mapping[Node, str]) -> tuple[str, ...]:
    """The names of the last layers on the way to an output, in order."""
    ends = last_layers(graph, layers, [output])
    return tuple(name for node, name in layers.items() if node in ends)


def _grid(graph: GraphModule, node: Node) -> tuple[float, float] | None:
    """The smallest and the largest value on the grid of a tensor; `None` for one that stays in float."""
    for user in node.users:
        module: Any = fake_quantize_node(graph, user)
        if module is not None and module.enabled:
            scale, zero_point = (value.item() for value in module.calculate_qparams())
            return (module.quant_min - zero_point) * scale, (module.quant_max - zero_point) * scale
    return None


class _Tally:
    """Sums over batches; the histogram's bins are those of the first batch."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.edges: tuple[float, float] | None = None
        self.counts = torch.zeros(BINS)

    def add(self, expected: Tensor, found: Tensor) -> None:
        expected, found = expected.float(), found.float()
        self.signal += expected.double().square().sum().item()
        self.noise += (expected - found).double().square().sum().item()
        if self.edges is None:
            low, high = expected.aminmax()
            self.edges = low.item(), high.item()
        self.counts += torch.histc(expected.clamp(*self.edges).cpu(), BINS, *self.edges)

    def result(self, layer: str, grid: tuple[float, float] | None) -> TensorNoise:
        assert self.edges is not None, "the network ran on at least one batch"
        counts = [int(count) for count in self.counts]
        return TensorNoise(layer, self.signal, self.noise, *self.edges, counts, grid)


class _Pairs(Interpreter):
    """Runs the float and the quantized network side by side: each node's value is a pair (float, quantized), and so is
    each input."""

    def __init__(self, prepared: GraphModule, tallied: Sequence[Node] | dict[Node, str]) -> None:
        super().__init__(prepared)
        self.tallies = {node: _Tally() for node in tallied}
        self.side = 0

    def run_node(self, n: Node) -> Any:
        if n.op == "placeholder":
            return super().run_node(n)
        pair = []
        for self.side in (0, 1):
            pair.append(super().run_node(n))
        if n in self.tallies:
            self.tallies[n].add(*pair)
        return tuple(pair)

    def map_nodes_to_values(self, args: Any, n: Node) -> Any:
        return map_arg(args, lambda node: self.env[node][self.side])

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        # the modules of a prepared graph are its fake-quantizers
        return args[0] if self.side == 0 else super().call_module(target, args, kwargs)
