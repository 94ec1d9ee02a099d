"""Multiply-accumulates a sample, beside PyTorch's own counter, wherever the batch is in a layer's tensors."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import brecq
from brecq.capture.export import capture
from brecq.graph import ops
from brecq.graph.counts import macs, of_one, sample_shape
from brecq.precision.hardware import profile

LAYERS = {"aten.convolution", "aten.mm", "aten.addmm"}  # products of two activations are not layers


def counted(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Multiply-accumulates of layers in a run of `model`, by PyTorch's counter."""
    torch.backends.mha.set_fastpath_enabled(False)  # one operator that the counter does not know
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return sum(flops for name, flops in counter.get_flop_counts()["Global"].items() if str(name) in LAYERS) // 2


class Frames(nn.Module):
    """Frames among the samples, and windows; a layer on the samples; a table that no input reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 8, 3, 2, padding=1), nn.ConvTranspose2d(8, 4, 2, 2)
        self.token, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.up(self.conv(x.flatten(0, 1)).relu())
        tokens = self.token(frames.flatten(2).transpose(1, 2))
        return self.head(tokens.mean(1).view(x.shape[0], x.shape[1], -1).mean(1))


class Attention(nn.Module):
    """Tokens first, then samples; or samples first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.first = batch_first
        self.embed = nn.Linear(5, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.layer(x).mean(1) if self.first else self.layer(x.transpose(0, 1)).mean(0))


OTHERS = {
    "frames": (Frames(), (5, 3, 8, 8)),
    "batch first": (Attention(True), (7, 5)),
    "tokens first": (Attention(False), (7, 5)),
}


def check(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    expected = counted(model, tuple(value[:1] for value in inputs))
    graph = capture(model, tuple(value[:2] for value in inputs))
    assert expected > 0
    assert sum(macs(node) for node in graph.graph.nodes if ops.kind(node)) == expected
    found = brecq.inspect(model, inputs, brecq.QuantConfig(8, 8))
    assert sum(block.macs for block in found.blocks) == expected
    assert counted(model, inputs) == expected * len(inputs[0])
    layers = profile.network_layers(model, inputs)
    assert sum(layer.macs for layer in layers) == expected
    for layer in layers:
        if not layer.kind.startswith("conv_transpose"):
            assert layer.positions * layer.reduction * layer.channels * layer.groups == layer.macs, layer


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("samples", [2, 3])
def test_wherever_the_batch_is(name: str, samples: int) -> None:
    model, shape = OTHERS[name]
    check(model.eval(), (torch.randn(samples, *shape),))


@pytest.mark.parametrize("name", ["ResNet", "MobileNet", "UNet", "ViT", "Signal"])
def test_networks(networks: ModuleType, name: str) -> None:
    model = networks.build(getattr(networks, name))
    check(model, networks.inputs(model, 3))


def test_shapes_of_one_sample() -> None:
    model, shape = OTHERS["frames"]
    nodes = [node for node in capture(model.eval(), (torch.randn(2, *shape),)).graph.nodes if ops.kind(node)]
    assert [of_one(node) for node in nodes] == [(5, 8, 4, 4), (5, 4, 8, 8), (5, 64, 6), (1, 2)]
    assert [sample_shape(node) for node in nodes] == [(5, 8, 4, 4), (5, 4, 8, 8), (5, 64, 6), (2,)]
    model, shape = OTHERS["tokens first"]
    nodes = [node for node in capture(model.eval(), (torch.randn(2, *shape),)).graph.nodes if ops.kind(node)]
    assert sample_shape(nodes[1]) == (7, 48)


class Table(nn.Module):
    """A layer on parameters, whose work is the same for any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.of = nn.Parameter(torch.randn(9, 4)), nn.Linear(4, 6)
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) @ self.of(self.table + x.mean() * 0).T


def test_work_that_does_not_grow_with_the_batch_counts_once() -> None:
    graph = capture(Table().eval(), (torch.randn(4, 6),))
    found = {str(node.args[1]): macs(node) for node in graph.graph.nodes if ops.kind(node)}
    assert sorted(found.values()) == [6 * 6, 9 * 4 * 6]
