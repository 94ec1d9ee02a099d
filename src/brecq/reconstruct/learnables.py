"""The fake-quantizers that a block, or the whole network, learns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from brecq.graph.fold import get_tensor
from brecq.placement.prepare import fake_quantize_node
from brecq.quant.fake_quant import ActivationFakeQuantize, BiasFakeQuantize, FakeQuantize, Mode, WeightFakeQuantize
from brecq.quant.learners import Learner
from brecq.reconstruct.choice import Choice


@dataclass(frozen=True)
class Learnables:
    """Fake-quantizers by name; those of weights and biases with the constant that they read."""

    weights: dict[str, tuple[WeightFakeQuantize, Tensor]] = field(default_factory=dict)
    activations: dict[str, ActivationFakeQuantize] = field(default_factory=dict)
    biases: dict[str, tuple[BiasFakeQuantize, Tensor]] = field(default_factory=dict)

    def named(self) -> dict[str, FakeQuantize]:
        """All of them by name."""
        weights = {name: module for name, (module, _) in self.weights.items()}
        return {**weights, **self.activations, **{name: module for name, (module, _) in self.biases.items()}}

    def learn(self, choice: Choice) -> list[Learner]:
        """Begin to learn, each by the learner of its kind."""
        for weight, value in self.weights.values():
            weight.learn(choice.weight(weight, value))
        for activation in self.activations.values():
            activation.learn(choice.activation(activation))
        for bias, value in self.biases.values():
            bias.learn(choice.bias(bias, value))
        return [module.learner for module in self.named().values() if module.learner is not None]

    def resume(self) -> None:
        """Go on learning after a look at what hard mode would give."""
        for module in self.named().values():
            module.mode = Mode.LEARN

    def state(self) -> dict[str, Tensor]:
        """What is settled, or would be if learning stopped now, by names for a file."""
        return {f"{name}.{key}": value for name, m in self.named().items() for key, value in m.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Settle on what `state` returned, end learning and go to hard mode."""
        for name, module in self.named().items():
            module.restore({key: state[f"{name}.{key}"] for key in module.settled if f"{name}.{key}" in state})


def learnables(graph: GraphModule, done: Collection[nn.Module] = ()) -> Learnables:
    """Fake-quantizers that a block (or the whole network) uses, without those in `done`: earlier blocks' own."""
    found = Learnables()
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
