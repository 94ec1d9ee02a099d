"""The prepared network is the float network, whatever the batch norms stand behind; what is not is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.passes.utils.matcher_utils import SubgraphMatcher
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

import brecq
from brecq.capture import batch_norm
from brecq.capture.export import capture
from brecq.config import QuantConfig
from brecq.errors import BrecqError, CaptureError
from brecq.evaluation import sqnr
from brecq.graph import fold, ops
from brecq.graph.difference import largest
from brecq.partition.blocks import extract
from brecq.partition.check import FloatNetwork, check_blocks, check_converted, node_values
from brecq.partition.cut import partition
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer

W8 = QuantConfig(8, 32, method="rtn")


class Net(nn.Module):
    """Layers and norms made on the way by `run(self, x)`, which names what it uses."""

    def __init__(self, run: Callable[..., Tensor], dims: int, **layers: nn.Module) -> None:
        super().__init__()
        self.run, self.parts, self.dims = run, nn.ModuleDict(layers), dims
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.3, 3.0)
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, **self.parts)


def shared(x: Tensor, stem, layer, a, b) -> Tensor:
    """A norm for each use of one layer."""
    return b(layer(F.relu(a(layer(stem(x))))))


def bare(x: Tensor, stem, layer, a, b) -> Tensor:
    """One of two calls without a norm."""
    return layer(F.relu(a(layer(stem(x)))))


def read(x: Tensor, stem, layer, a, b) -> Tensor:
    """The layer's output is read in front of its norm too."""
    y = layer(stem(x))
    return y + b(F.relu(a(y)))


def parallel(x: Tensor, stem, layer, a, b) -> Tensor:
    y = layer(stem(x))
    return a(y) * torch.sigmoid(b(y))


def series(x: Tensor, stem, layer, a, b) -> Tensor:
    return b(a(layer(stem(x))))


def preactivated(x: Tensor, stem, layer, a, b) -> Tensor:
    x = stem(x)
    return x + layer(F.relu(a(x)))


def dense(x: Tensor, stem, layer, a, b) -> Tensor:
    x = stem(x)
    return torch.cat([x, layer(F.relu(a(x)))], 1) + torch.cat([b(x), x], 1)


CONV = {1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d),
        3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d)}  # fmt: skip


def network(run: Callable[..., Tensor], kind: str, dims: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    if kind == "linear":
        stem, layer, norm, shape = nn.Linear(5, 6), nn.Linear(6, 6), nn.BatchNorm1d, (5,)
    else:
        conv, transposed, norm = CONV[dims]
        stem, shape = conv(3, 6, 1), (3, *[5] * dims)
        layer = transposed(6, 6, 3, padding=1, groups=2) if kind == "transposed" else conv(6, 6, 3, padding=1)
    return Net(run, dims, stem=stem, layer=layer, a=norm(6), b=norm(6)).eval(), torch.randn(12, *shape)


CASES = [
    *[(run, "conv", 2) for run in (shared, bare, read, parallel, series, preactivated, dense)],
    (shared, "linear", 0), (read, "linear", 0), (shared, "conv", 1), (parallel, "transposed", 1), (series, "conv", 3),
    (shared, "conv", 3), (series, "transposed", 3),
    (read, "transposed", 2),
]  # fmt: skip


@pytest.mark.parametrize(("run", "kind", "dims"), CASES)
def test_batch_norms_anywhere(
    run: Callable[..., Tensor], kind: str, dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network(run, kind, dims)
    # the search for patterns of quantization-aware training takes a minute wherever a norm is left
    monkeypatch.setattr(SubgraphMatcher, "match", lambda *_: pytest.fail("searches the graph for patterns"))
    result = brecq.quantize(model, x, W8)  # checks itself
    expected, found = model(x), result.converted(x)
    assert sqnr(float(expected.square().sum()), float((expected - found).square().sum())) > 30


@pytest.mark.parametrize("run", [shared, parallel])
def test_other_quantizers_leave_batch_norms_alone_too(run: Callable[..., Tensor]) -> None:
    model, x = network(run, "conv", 2)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    graph = prepare(capture(model, (x[:2],)), quantizer)
    assert largest([model(x)], [graph(x)]) < 1e-5


class Remembers(nn.Module):
    """Keeps state in its own forward: what follows it gives other outputs, for other inputs."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.calls, self.last = how, nn.Conv2d(3, 3, 1), 0, None
        self.register_buffer("average", torch.zeros(3, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "attribute":
            x, self.last = x if self.last is None else x + self.last, x
        elif self.how == "buffer":
            x = x - self.average.mul_(0.5).add_(x.mean(0))
        y = self.conv(x)
        self.calls += 1
        return y * self.calls if self.how == "count" else y


@pytest.mark.parametrize("how", ["attribute", "buffer", "count"])
def test_state_in_forward_is_refused_by_the_module_that_keeps_it(how: str) -> None:
    memory = nn.Sequential(nn.ReLU(), Remembers(how), nn.ReLU())
    model = nn.Sequential(nn.Conv2d(3, 3, 1), memory, nn.Conv2d(3, 4, 1)).eval()
    with pytest.raises(CaptureError, match=r"state that it keeps in '1\.1' in eval mode"):
        brecq.quantize(model, torch.randn(8, 3, 5, 5), W8)
    with pytest.raises(CaptureError, match="state that it keeps in 'Remembers'"):
        brecq.quantize(Remembers(how).eval(), torch.randn(8, 3, 5, 5), W8)


class Tied(nn.Module):
    """Two layers with one weight and one bias, each behind a norm of its own; a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias
        norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(4)]
        self.norms = Net(shared, 2, **{str(i): norm for i, norm in enumerate(norms)}).parts

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms["1"](self.b(F.relu(self.norms["0"](self.a(x)))))
        weight = self.c.weight / self.c.weight.flatten(1).norm(dim=1)[:, None, None, None]
        return self.norms["2"](F.conv2d(x, weight, self.c.bias))


@pytest.mark.parametrize("config", [W8, QuantConfig(8, 8, method="rtn")], ids=["W8A32", "W8A8"])
def test_tied_weights_and_computed_ones(config: QuantConfig) -> None:
    model, x = Tied().eval(), torch.randn(12, 3, 5, 5)
    expected, found = model(x), brecq.quantize(model, x, config).converted(x)
    assert sqnr(float(expected.square().sum()), float((expected - found).square().sum())) > 30


class Mirrored(nn.Module):
    """A transposed convolution with the weight of the convolution that it undoes."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.other = nn.Conv2d(3, 8, 2, 2), nn.ConvTranspose2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.down(x))
        return self.other(F.conv_transpose2d(y, self.down.weight, stride=2))


def test_a_weight_with_outputs_along_two_axes_has_one_step() -> None:
    model, x = Mirrored().eval(), torch.randn(12, 3, 6, 6)
    graph = brecq.quantize(model, x, QuantConfig(8, 8, method="rtn")).converted
    assert not hasattr(graph.down, "weight_scale")  # one step is an argument of its operator
    assert graph.other.weight_scale.numel() == 8
    expected, found = model(x), graph(x)
    assert sqnr(float(expected.square().sum()), float((expected - found).square().sum())) > 30


def test_a_capture_that_is_another_network_is_refused_by_its_first_wrong_layer(
    networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = networks.build(networks.ResNet)
    (x,) = networks.inputs(model, samples=6)
    fused = batch_norm.fuse_conv_bn_weights

    def wrong(weight: Tensor, bias: Tensor | None, mean: Tensor, var: Tensor, *rest: object, **options: object):
        return fused(weight, bias, mean, var * (1.001 if weight.shape[0] == 16 else 1), *rest, **options)

    monkeypatch.setattr(batch_norm, "fuse_conv_bn_weights", wrong)
    with pytest.raises(
        CaptureError, match=r"captured graph is not the network.* first behind 'layer2\.0\.(conv1|downs)"
    ):
        brecq.quantize(model, x, W8)


def test_float_noise_is_no_fault(networks) -> None:
    """A network that blows rounding errors up: one unit in the last place of a constant moves its output by 1e-3."""

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(x)).double().sum((2, 3)).float()
            return torch.sin(1e3 * y)

    model, x = networks.build(Steep), torch.randn(4, 3, 6, 6)
    graph = capture(model, (x,))
    reference = FloatNetwork(model, (x,))
    assert largest(reference.outputs, [graph(x)]) > 1e-5
    reference.check(graph, "the captured graph")


def test_blocks_that_part_are_refused_by_name(captured, networks) -> None:
    prepared = prepare(captured("ResNet"), BrecqQuantizer(QuantConfig()))
    network = extract(prepared, partition(prepared, "block"))
    inputs = networks.inputs(networks.build(networks.ResNet))
    check_blocks(network, inputs)
    block = network.blocks[1].module
    relu = next(node for node in block.graph.nodes if "relu" in str(node.target))
    relu.replace_all_uses_with(relu.args[0])
    block.recompile()
    with pytest.raises(BrecqError, match=f"block '{network.blocks[1].name}' alone computes another"):
        check_blocks(network, inputs)


def test_a_program_that_parts_from_its_graph_is_refused(captured, networks) -> None:
    graph, (x,) = captured("ResNet"), networks.inputs(networks.build(networks.ResNet))
    assert check_converted(graph, graph, [x]) is None
    moved = captured("ResNet")
    layer = next(node for node in moved.graph.nodes if ops.kind(node) == "linear")
    fold.get_tensor(moved, str(layer.args[2].target)).add_(1e-3 * graph(x).abs().max())
    assert "differs from the quantized network by 1.0e-03" in str(check_converted(graph, moved, [x]))
    with pytest.raises(BrecqError, match="converted program differs"):
        check_converted(graph, captured("MobileNet"), [x])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([float("inf"), float("nan"), 2.0], [float("inf"), float("nan"), 1.0], 0.5),
        ([float("inf"), 2.0], [1.0, 2.0], float("inf")),
        ([0.0, 0.0], [0.0, 1e-9], 1.0),
    ],
)
def test_differences_are_relative_to_the_largest_value(a: list[float], b: list[float], expected: float) -> None:
    assert largest([torch.tensor(a)], [torch.tensor(b)]) == expected


def test_outputs_of_another_make_are_infinitely_far_apart() -> None:
    x = torch.ones(3)
    assert largest([x], [x, x]) == largest([x], [torch.ones(4)]) == float("inf")
    assert largest([torch.tensor([1, 2])], [torch.tensor([1, 3])]) == 0.5


def test_only_what_lies_between_blocks_is_kept_to_compare_them(networks: ModuleType, captured) -> None:
    """All activations of a detector for four pictures are gigabytes."""
    graph = captured("ResNet")
    inputs = networks.inputs(networks.build(networks.ResNet), 2)
    every = node_values(graph, inputs)
    names = {node.name for node in list(every)[::5]}
    some = node_values(graph, inputs, names)
    assert {node.name for node in some} == names
    assert all(torch.equal(value, every[node]) for node, value in some.items())
