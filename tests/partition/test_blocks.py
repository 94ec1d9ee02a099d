"""Blocks: running them in order is running the network, bit for bit."""

from __future__ import annotations

from types import ModuleType
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from brecq.capture.export import capture
from brecq.config import Granularity, QuantConfig
from brecq.graph import ops
from brecq.graph.fold import get_tensor
from brecq.partition.blocks import Network, extract
from brecq.partition.cut import partition
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.quant.fake_quant import ActivationFakeQuantize, BiasFakeQuantize, Mode, WeightFakeQuantize, set_mode
from brecq.reconstruct.learnables import learnables

GRANULARITIES = get_args(Granularity)
EVERYTHING = ["ResNet", "MobileNet", "SENet", "ConcatNet", "ViT", "UNet", "TwoBranch", "FPN", "Signal", "Recurrent",
              "Functional", "Standardized"]  # fmt: skip


def quantized(graph: GraphModule, inputs: tuple[Tensor, ...], placement: str = "output") -> GraphModule:
    """Prepared, with ranges set and everything rounded."""
    prepared = prepare(graph, BrecqQuantizer(QuantConfig(weights=4, activations=4, placement=placement)))
    for node in prepared.graph.nodes:
        module = prepared.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, WeightFakeQuantize):
            module.initialize(get_tensor(prepared, node.args[0].target), 2.4, 4)
    set_mode(prepared, Mode.OBSERVE)
    prepared(*inputs)
    for module in prepared.modules():
        if isinstance(module, ActivationFakeQuantize):
            module.initialize(2.4, 4)
    set_mode(prepared, Mode.HARD)
    return prepared


def run(network: Network, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The network's outputs, block after block, each activation forgotten after its last use."""
    values = dict(zip(network.inputs, inputs, strict=True))
    last = network.last_use()
    for i, block in enumerate(network.blocks):
        before = {name: value.clone() for name, value in values.items()}
        values.update(block(values))
        assert all(torch.equal(values[name], value) for name, value in before.items()), "a block wrote into its input"
        values = {name: value for name, value in values.items() if last[name] > i}
    return tree_leaves(network.output(values))


def check_is_the_network(prepared: GraphModule, inputs: tuple[Tensor, ...], granularity: Granularity) -> Network:
    specs = partition(prepared, granularity)
    network = extract(prepared, specs)
    found, expected = run(network, inputs), tree_leaves(prepared(*inputs))
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    layers = [layer for block in network.blocks for layer in block.layers]
    assert len(layers) == len(set(layers)) == sum(ops.kind(node) is not None for node in prepared.graph.nodes)
    return network


@pytest.mark.parametrize("placement", ["output", "input"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_blocks_in_order_are_the_network(captured, networks: ModuleType, name: str, placement: str) -> None:
    model = networks.build(getattr(networks, name))
    prepared = quantized(captured(name), networks.inputs(model, 4, seed=2), placement)
    inputs = networks.inputs(model, samples=5)
    if placement == "output":  # rounding really takes place
        set_mode(prepared, Mode.FLOAT)
        plain = tree_leaves(prepared(*inputs))
        set_mode(prepared, Mode.HARD)
        assert not torch.equal(plain[0], tree_leaves(prepared(*inputs))[0])
    for granularity in GRANULARITIES:
        check_is_the_network(prepared, inputs, granularity)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), placement=st.sampled_from(["output", "input"]))
def test_random_graphs(networks: ModuleType, seed: int, placement: str) -> None:
    with torch.no_grad():
        model = networks.build(lambda: networks.RandomDag(seed))
        inputs = (torch.randn(2, 3, 6, 6),)
        prepared = quantized(capture(model, inputs), (torch.randn(8, 3, 6, 6),), placement)
        for granularity in GRANULARITIES:
            network = check_is_the_network(prepared, (torch.randn(3, 3, 6, 6),), granularity)
            for block in network.blocks:
                assert set(block.outputs).isdisjoint(block.inputs)


class Sized(nn.Module):
    """Scales what it has made back to the size of an earlier tensor, which no other tensor of that block has."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of = of
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2)
        self.third, self.last = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        inner = self.first(image).relu()
        small = self.third(self.second(inner).relu()).relu()
        size = {"image": image, "inner": inner}[self.of].shape[-2:]
        return self.last(functional.interpolate(small, size=size).relu())


@pytest.mark.parametrize("placement", ["output", "input"])
@pytest.mark.parametrize("of", ["image", "inner"])
def test_sizes_that_no_input_of_a_block_has(of: str, placement: str) -> None:
    torch.manual_seed(0)
    prepared = quantized(capture(Sized(of).eval(), (torch.randn(2, 3, 33, 41),), any_size=True),
                         (torch.randn(4, 3, 33, 41),), placement)  # fmt: skip
    for granularity in GRANULARITIES:
        network = check_is_the_network(prepared, (torch.randn(3, 3, 37, 45),), granularity)
        assert all(len(block.targets) == 1 for block in network.blocks)


def test_blocks_with_several_inputs_and_outputs(captured) -> None:
    network = extract(captured("UNet"), partition(captured("UNet")))
    sides = {block.name: (len(block.inputs), len(block.outputs)) for block in network.blocks}
    # the first encoders hand on what is pooled for the next one, and what is concatenated in the decoder
    assert sides == {"enc1": (1, 2), "enc2": (1, 2), "mid": (1, 1), "up2": (1, 1), "dec2": (2, 1), "up1": (1, 1),
                     "dec1": (2, 1), "out": (1, 1)}  # fmt: skip


def test_learning_in_a_block_changes_the_network(captured, networks: ModuleType) -> None:
    x = torch.randn(4, 3, 16, 16)
    prepared = quantized(captured("ResNet"), (x,))
    network = extract(prepared, partition(prepared))
    before = prepared(x)
    block = network.blocks[1]
    module = next(m for m in block.module.modules() if isinstance(m, WeightFakeQuantize))
    module.scale = module.scale * 1.5
    assert not torch.equal(prepared(x), before)
    assert torch.equal(run(network, (x,))[0], prepared(x))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["Recurrent", "FPN", "ConcatNet", "TwoBranch", "UNet"])
def test_every_quantizer_is_learned_in_exactly_one_block(captured, networks, name: str, granularity) -> None:
    prepared = quantized(captured(name), networks.inputs(networks.build(getattr(networks, name)), 4))
    network = extract(prepared, partition(prepared, granularity))
    done: set[torch.nn.Module] = set()
    for block in network.blocks:
        mine = learnables(block.module, done)
        found = {module for module, _ in mine.weights.values()} | set(mine.activations.values())
        assert found.isdisjoint(done)
        done |= found
    learnable = {m for m in prepared.modules() if isinstance(m, WeightFakeQuantize | ActivationFakeQuantize)}
    assert done == learnable
    assert any(isinstance(module, BiasFakeQuantize) for module in prepared.modules())


def test_output_keeps_the_structure_of_a_single_tensor(captured) -> None:
    graph = captured("ResNet")
    network = extract(graph, partition(graph))
    values = {network.inputs[0]: torch.randn(2, 3, 16, 16)}
    for block in network.blocks:
        values.update(block(values))
    assert isinstance(network.output(values), Tensor)
