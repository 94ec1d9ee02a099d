"""Folding: batch norm into the layer before it, constants into constants."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brecq.graph import ops
from brecq.graph.capture import capture


def targets(graph: torch.fx.GraphModule) -> list[str]:
    return [ops.op_name(node) for node in graph.graph.nodes if node.op == "call_function"]


def normalized(layer: nn.Module, norm: nn.Module) -> nn.Module:
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return nn.Sequential(layer, norm).eval()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (lambda bias: nn.Conv1d(4, 6, 3, bias=bias), lambda a: nn.BatchNorm1d(6, affine=a), (4, 9)),
        (lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias), lambda a: nn.BatchNorm2d(6, affine=a), (4, 5, 5)),
        (lambda bias: nn.ConvTranspose2d(4, 6, 2, bias=bias), lambda a: nn.BatchNorm2d(6, affine=a), (4, 5, 5)),
        (
            lambda bias: nn.ConvTranspose2d(4, 6, 2, groups=2, bias=bias),
            lambda a: nn.BatchNorm2d(6, affine=a),
            (4, 5, 5),
        ),
        (lambda bias: nn.Linear(4, 6, bias=bias), lambda a: nn.BatchNorm1d(6, affine=a), (4,)),
    ],
    ids=["conv1d", "grouped conv2d", "transposed", "grouped transposed", "linear"],
)
def test_batch_norm_folds_into_every_kind_of_layer(layer, norm, shape, bias: bool, affine: bool) -> None:
    model = normalized(layer(bias), norm(affine))
    graph = capture(model, (torch.randn(2, *shape),))
    assert len(targets(graph)) == 1
    x = torch.randn(3, *shape)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


class Frozen(nn.Module):
    """A batch norm as detectors freeze it: numbers that scale and shift. `own`: whose output something else reads."""

    def __init__(self, layer: nn.Module, *, own: bool = False, shape: tuple[int, ...] = (1, 6, 1, 1)) -> None:
        super().__init__()
        self.layer, self.own = layer, own
        self.register_buffer("scale", torch.rand(shape) + 0.5)
        self.register_buffer("variance", torch.rand(shape) + 0.5)
        self.register_buffer("shift", torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x)
        y = found * (self.scale * (self.variance + 1e-5).rsqrt()) + self.shift
        return (y.relu(), found.mean()) if self.own else y.relu()


@pytest.mark.parametrize("bias", [True, False])
def test_frozen_batch_norm_folds_like_a_live_one(bias: bool) -> None:
    model, x = Frozen(nn.Conv2d(4, 6, 3, bias=bias)).eval(), torch.randn(3, 4, 8, 8)
    graph = capture(model, (x,))
    assert targets(graph) == ["conv2d", "relu"]
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_affine_numbers_that_are_not_of_the_channels_stay() -> None:
    x = torch.randn(3, 4, 8, 8)
    read_elsewhere = capture(Frozen(nn.Conv2d(4, 6, 3), own=True).eval(), (x,))
    assert {"mul", "add"} <= set(targets(read_elsewhere))
    rows = capture(Frozen(nn.Conv2d(4, 6, 3), shape=(1, 1, 6, 1)).eval(), (x,))
    assert targets(rows) == ["conv2d", "mul", "add", "relu"]


class Tokens(nn.Module):
    """A batch norm over the tokens of [N, T, C], with T = C, and one over its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.tokens, self.b, self.channels = (
            nn.Linear(4, 4),
            nn.BatchNorm1d(4),
            nn.Linear(4, 6),
            nn.BatchNorm1d(6),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.channels(self.b(self.tokens(self.a(x))).transpose(1, 2))


def test_batch_norm_stays_where_it_normalizes_another_dimension(networks: ModuleType) -> None:
    model = networks.build(Tokens)
    x = torch.randn(5, 4, 4)
    graph = capture(model, (x[:2],))
    assert targets(graph).count("batch_norm") == 2
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


class ReadTwice(nn.Module):
    """The convolution's output is used in front of its batch norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.bn(y)


class SharedWeight(nn.Module):
    """One convolution with a batch norm for each of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bns = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x: Tensor) -> Tensor:
        for bn in self.bns:
            x = F.relu(bn(self.conv(x)))
        return x


class SharedBias(nn.Module):
    """Two convolutions that add the same bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 3, 1, 1)), nn.Parameter(torch.randn(3, 3, 1, 1))
        self.bias, self.bn = nn.Parameter(torch.randn(3)), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.bn(F.conv2d(x, self.a, self.bias)), self.b, self.bias)


@pytest.mark.parametrize("network", [ReadTwice, SharedWeight, SharedBias])
def test_batch_norm_stays_where_folding_would_change_something_else(networks: ModuleType, network) -> None:
    model = networks.build(network)
    graph = capture(model, (torch.randn(2, 3, 4, 4),))
    assert "batch_norm" in targets(graph)
    x = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_standardized_weights_become_constants(captured, networks: ModuleType) -> None:
    graph = captured("Standardized")
    assert targets(graph) == ["conv2d", "relu", "conv2d", "relu", "mean", "linear"]
    layers = [node for node in graph.graph.nodes if ops.kind(node)]
    assert [node.args[1].op for node in layers] == ["get_attr"] * 3
    weight = networks.build(networks.Standardized).stem.weight
    weight = weight - weight.mean((1, 2, 3), keepdim=True)
    folded = getattr(graph, layers[0].args[1].target)
    torch.testing.assert_close(folded, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5))


def test_unused_tensors_are_dropped(captured) -> None:
    graph = captured("ResNet")
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    assert set(graph.state_dict()) == used
    assert not any("running" in name or "num_batches" in name for name in graph.state_dict())
