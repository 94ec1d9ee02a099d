"""What each quantizer alone costs: everything else in float, on a few samples, before any long run.

Every fake-quantizer is switched on by itself. Only what lies behind it is computed again, from the values of one float
run that are kept, so that a network with a hundred quantizers takes some fifty forward passes.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from brecq import logits
from brecq.graph import ops
from brecq.graph.dataflow import Dataflow
from brecq.graph.outputs import structured
from brecq.graph.reach import activation_end
from brecq.placement.prepare import fake_quantize_node, input_quantizer
from brecq.quant.fake_quant import ActivationFakeQuantize, Mode, WeightFakeQuantize, set_mode
from brecq.report import TensorLoss

Quantizer = WeightFakeQuantize | ActivationFakeQuantize


@torch.no_grad()
def tensor_losses(prepared: GraphModule, inputs: Sequence[Tensor]) -> list[TensorLoss]:
    """What each quantized tensor costs alone, the most expensive first; leaves the fake-quantizers in float mode.

    Args:
        prepared: its fake-quantizers initialized. inputs: each [N, ...], on the graph's device, a few samples.
    """
    set_mode(prepared, Mode.FLOAT)
    run = _Alone(prepared, inputs)
    expected = run.outputs({})
    found = []
    for module, nodes in quantizers(prepared).items():
        module.mode = Mode.HARD
        changed = run.behind(nodes)
        module.mode = Mode.FLOAT
        own = [(run.env[_source(node)], changed[node]) for node in nodes]
        outputs = {name: _ratio([(value, new)]) for name, value, new in _pairs(expected, run.outputs(changed))}
        found.append(_describe(prepared, module, nodes, _ratio(own), outputs))
    return sorted(found, key=lambda each: -each.worst)


@torch.no_grad()
def output_loss(prepared: GraphModule, inputs: Sequence[Tensor]) -> dict[str, float]:
    """What all quantizers together cost: noise over signal of each output, by name. Leaves them in hard mode."""
    values = []
    for mode in (Mode.FLOAT, Mode.HARD):
        set_mode(prepared, mode)
        output = Interpreter(prepared).run(*inputs, enable_io_processing=False)
        values.append(logits.named_outputs(structured(prepared, output)))
    return {name: _ratio([(value, new)]) for name, value, new in _pairs(*values)}


def quantizers(prepared: GraphModule) -> dict[Quantizer, list[Node]]:
    """The enabled fake-quantizers of weights and activations, and where they act, in program order."""
    found: dict[Quantizer, list[Node]] = {}
    for node in prepared.graph.nodes:
        module: Any = fake_quantize_node(prepared, node)
        if isinstance(module, (WeightFakeQuantize, ActivationFakeQuantize)) and module.enabled:
            found.setdefault(module, []).append(node)
    return found


class _Alone(Interpreter):
    """The values of a float run, and the nodes that change behind some of them computed again."""

    def __init__(self, prepared: GraphModule, inputs: Sequence[Tensor]) -> None:
        super().__init__(prepared, garbage_collect_values=False)
        self.prepared, self.nodes = prepared, list(prepared.graph.nodes)
        self.run(*inputs, enable_io_processing=False)
        self.floats: Mapping[Node, Any] = dict(self.env)

    def behind(self, nodes: Sequence[Node]) -> dict[Node, Any]:
        """The values of `nodes` and of all that depends on them, computed anew."""
        changed: dict[Node, Any] = {}
        self.env = ChainMap(changed, dict(self.floats))  # type: ignore[assignment]
        starts = set(nodes)
        for node in self.nodes:
            if node.op == "output":
                break
            if node in starts or any(source in changed for source in node.all_input_nodes):
                changed[node] = self.run_node(node)
        return changed

    def outputs(self, changed: Mapping[Node, Any]) -> dict[str, Tensor]:
        """The network's outputs by name."""
        last = next(node for node in self.nodes if node.op == "output")
        values = pytree.tree_map_only(Node, lambda node: changed.get(node, self.floats[node]), last.args[0])
        return logits.named_outputs(structured(self.prepared, values))


def _pairs(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name, value in expected.items():
        if value.is_floating_point():
            yield name, value, found[name]


def _ratio(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Noise over signal, of sums of squares over all pairs (float, quantized)."""
    signal = sum(value.double().square().sum().item() for value, _ in pairs)
    noise = sum((value.double() - new.double()).square().sum().item() for value, new in pairs)
    return noise / max(signal, 1e-300) if noise else 0.0


def _describe(
    prepared: GraphModule, module: Quantizer, nodes: Sequence[Node], own: float, outputs: dict[str, float]
) -> TensorLoss:
    flow = Dataflow(prepared)
    layers = {node: layer for node, layer in zip(flow.ops, flow.layers, strict=True) if layer}
    if isinstance(module, WeightFakeQuantize):
        readers = [layer for node, layer in layers.items() if fake_quantize_node(prepared, node.args[1]) is module]
        name = readers[0] if readers else str(_source(nodes[0]).target)
        return TensorLoss(name, "weight", module.range.bits, tuple(readers), own, outputs)
    ends = {activation_end(node): layer for node, layer in layers.items()}
    readers = [layer for node, layer in layers.items() if input_quantizer(prepared, node) is module]
    names = dict.fromkeys(_name(_source(node), ends) for node in nodes)
    return TensorLoss(" and ".join(names), "activation", module.range.bits, tuple(readers), own, outputs)


def _name(source: Node, ends: Mapping[Node, str]) -> str:
    if source in ends:
        return f"output of {ends[source]}"
    if source.op == "placeholder":
        return f"input {source.name}"
    path = ops.module_path(source)
    return f"{ops.op_name(source)}{f' in {path}' if path else ''} ({source.name})"


def _source(node: Node) -> Any:
    return node.args[0]
