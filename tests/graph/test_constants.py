"""What depends on no activation is a constant: evaluated once, or made anew in each block that needs it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brecq
from brecq import QuantConfig
from brecq.capture.export import capture
from brecq.deploy.complete import complete
from brecq.graph import ops
from brecq.graph.dataflow import Dataflow
from brecq.partition.blocks import extract
from brecq.partition.cut import partition
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer


def build(network: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return network().eval()


class Made(nn.Module):
    """Constants made by operators without inputs."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(torch.linspace(0, 1, 4), torch.arange(8.0), indexing="ij")
        x = x * rows + columns + torch.full((4, 8), 0.3) + torch.ones(4, 8).tril()
        return x + torch.tensor([1.0, 2, 3, 4])[:, None] + torch.eye(4, 8)


class ScaledStdConv(nn.Conv2d):
    """The layer of NFNets: its weight comes out of a functional batch norm of the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Chunked(nn.Module):
    """One parameter for three projections."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.Parameter(torch.randn(24, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projections.chunk(3)
        return F.linear(x, q) + F.linear(x, k) * F.linear(x, v)


class Positions(nn.Module):
    """Tokens with positions and a mask that every layer reads, a class token, and tables of sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.table = nn.Embedding(40, 1)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        t = self.embed(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.token.expand(x.shape[0], -1, -1), t], 1)
        place = torch.arange(t.shape[1])
        bias = self.table(place[:, None] - place[None] + 17)[..., 0]  # [T, T]
        blank = torch.zeros_like(t)
        for layer in self.layers:
            t = t + F.relu(layer(t)) * bias.mean(1)[:, None] + blank
        return t.mean(1)


def test_operators_without_inputs_are_evaluated() -> None:
    x = torch.randn(3, 4, 8)
    graph = capture(Made(), [x[:2]])
    assert {node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"} <= {
        "add.Tensor", "mul.Tensor",
    }  # fmt: skip
    torch.testing.assert_close(graph(x), Made()(x))


@pytest.mark.parametrize(("layer", "shape"), [(ScaledStdConv(3, 8, 3), (3, 6, 6)), (Chunked(), (4, 8))])
def test_weights_from_operators_with_several_outputs_are_constants(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(3, *shape)
    graph = capture(layer, [x[:2]])
    prepared = prepare(graph, BrecqQuantizer(QuantConfig(weights=4)))
    weighted = [node for node in prepared.graph.nodes if "conv2d" in node.name or "linear" in node.name]
    assert all(node.args[1].op == "call_module" for node in weighted if node.op == "call_function")
    torch.testing.assert_close(prepared(x), layer(x))


def test_positions_do_not_join_blocks() -> None:
    model = build(Positions)
    x = torch.randn(5, 3, 16, 16)
    prepared = prepare(capture(model, [x[:2]]), BrecqQuantizer(QuantConfig()))
    specs = partition(prepared)
    assert [spec.name for spec in specs] == ["embed", "layers.0", "layers.1", "layers.2", "layers.3"]
    assert not any(spec.joined for spec in specs)
    network = extract(prepared, specs)
    values = {"x": x}
    for block in network.blocks:
        values.update(block(values))
    assert torch.equal(network.output(values), prepared(x))
    torch.testing.assert_close(prepared(x), model(x))


def test_blocks_that_cannot_be_cut_say_why() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            mean = y.mean(0)
            return self.c(self.b(y)) * mean

    first, spec = partition(prepare(capture(Crossed(), [torch.randn(2, 8)]), BrecqQuantizer(QuantConfig())), "layer")
    assert (first.name, first.joined) == ("a", "")
    assert spec.joined.startswith("b, c are one block: ")
    assert "[8], which passes between them, is no batch" in spec.joined


class Counted(nn.Module):
    """Scales by numbers that come from sizes by other ways than x.shape: all elements, a quotient, a power."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = F.relu(self.middle(y)) * (y.numel() / x.shape[0]) / 6
        y = y + torch.arange(y.numel()).view(y.shape) % 3 * 0.1
        return self.last(y) * x.shape[0] ** 0.5


def test_every_way_to_a_size_is_a_size() -> None:
    network = build(Counted)
    x = torch.randn(8, 6)
    graph = capture(network, (x,))
    assert {ops.op_name(node) for node in Dataflow(graph).ops} == {"linear", "relu", "mul", "div", "add"}
    result = brecq.quantize(network, x, QuantConfig(weights=8, activations=8, method="rtn"))
    assert len(complete(result).added) > 0  # the recorded ranges are found again in the program as exported anew
    assert torch.nn.functional.mse_loss(result.model(x[:3]), network(x[:3])) < 1e-2


class Anchored(nn.Module):
    """Anchors in the type of a map and in its sizes, with strides from a buffer, as YOLO makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.register_buffer("stride", torch.tensor([8.0, 16.0]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        height, width = y.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(height).type_as(y), torch.arange(width).to(y) + 0.5, indexing="ij")
        anchors = torch.stack((columns, rows)) * y.new_full((1, 1), self.stride[1])
        blank = torch.zeros(1, 1, 1, 1).expand_as(y)[:, :2].clone()
        blank[:, 0] = self.stride[0]
        return self.last(y) + anchors.reshape(-1).view_as(y[0, :2]) + blank


def test_what_reads_sizes_and_types_alone_is_no_activation() -> None:
    network = build(Anchored)
    graph = capture(network, (torch.randn(2, 3, 4, 5),))
    assert [ops.op_name(node) for node in Dataflow(graph).ops] == ["conv2d", "conv2d", "add", "add"]
    x = torch.randn(3, 3, 4, 5)
    torch.testing.assert_close(graph(x), network(x))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (x.amax().item() * 2)


def test_numbers_that_depend_on_values_are_no_sizes() -> None:
    graph = capture(build(Branching), (torch.randn(4, 6),))
    assert not any(ops.is_size(node) for node in graph.graph.nodes)


def test_standardized_weights_become_constants(captured, networks: ModuleType) -> None:
    graph = captured("Standardized")
    assert [ops.op_name(node) for node in graph.graph.nodes if node.op == "call_function"] == [
        "conv2d",
        "relu",
        "conv2d",
        "relu",
        "mean",
        "linear",
    ]
    layers = [node for node in graph.graph.nodes if ops.kind(node)]
    assert [node.args[1].op for node in layers] == ["get_attr"] * 3
    weight = networks.build(networks.Standardized).stem.weight
    weight = weight - weight.mean((1, 2, 3), keepdim=True)
    folded = getattr(graph, layers[0].args[1].target)
    torch.testing.assert_close(folded, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5))
