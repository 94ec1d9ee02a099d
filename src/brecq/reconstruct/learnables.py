"""The fake-quantizers that a block, or the whole network, learns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from brecq.graph.fold import get_tensor
from brecq.graph.prepare import fake_quantize_node
from brecq.quant.fake_quant import ActivationFakeQuantize, BiasFakeQuantize, FakeQuantize, Mode, WeightFakeQuantize

_LEARNED = ("scale", "zero_point", "codes", "learned")
"""Buffers of the fake-quantizers that hold what was learned."""


@dataclass
class Learnables:
    """The fake-quantizers of a block that are still to be learned."""

    weights: dict[str, tuple[WeightFakeQuantize, Tensor]]
    activations: dict[str, ActivationFakeQuantize]
    biases: dict[str, tuple[BiasFakeQuantize, Tensor]]

    def named(self) -> dict[str, FakeQuantize]:
        """All of them by name."""
        weights = {name: module for name, (module, _) in self.weights.items()}
        return {**weights, **self.activations, **{name: module for name, (module, _) in self.biases.items()}}

    def state(self) -> dict[str, Tensor]:
        """What has been learned, by names for a file: the buffers that are set."""
        named = {f"{name}.{key}": getattr(m, key, None) for name, m in self.named().items() for key in _LEARNED}
        return {name: value for name, value in named.items() if value is not None}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned, in hard mode."""
        for name, module in self.named().items():
            for key in _LEARNED:
                if hasattr(module, key):
                    setattr(module, key, state.get(f"{name}.{key}"))
            module.mode = Mode.HARD


def learnables(graph: GraphModule, done: Collection[nn.Module] = ()) -> Learnables:
    """Fake-quantizers that a block (or the whole network) uses, without those in `done`: earlier blocks' own."""
    found = Learnables({}, {}, {})
    seen = set(done)
    for node in graph.graph.nodes:
        module = fake_quantize_node(graph, node)
        if module is None or module in seen or not (module.enabled or isinstance(module, BiasFakeQuantize)):
            continue
        seen.add(module)  # one module can be at several places: in front of a concatenation, for a shared weight
        name, source = str(node.target), node.args[0]
        if isinstance(module, ActivationFakeQuantize):
            if module.fixed:
                continue
            found.activations[name] = module
        elif isinstance(source, Node) and source.op == "get_attr":
            kind: dict[str, Any] = found.weights if isinstance(module, WeightFakeQuantize) else found.biases
            kind[name] = (module, get_tensor(graph, str(source.target)))
    return found


def make_room(graph: GraphModule) -> None:
    """Give every bias of a block (or the network) steps that its codes fit; call it whenever steps have been set."""
    for node in graph.graph.nodes:
        module, source = fake_quantize_node(graph, node), node.args[0] if node.args else None
        if isinstance(module, BiasFakeQuantize) and isinstance(source, Node) and source.op == "get_attr":
            module.make_room(get_tensor(graph, str(source.target)))
