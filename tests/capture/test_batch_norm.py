"""Batch norm goes into the layer before it, also one that is called several times; what stays says why."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brecq.capture.batch_norm import UNFOLDED
from brecq.capture.export import capture
from brecq.graph import ops


def targets(graph: torch.fx.GraphModule) -> list[str]:
    return [ops.op_name(node) for node in graph.graph.nodes if node.op == "call_function"]


def normalized(layer: nn.Module, norm: nn.Module) -> nn.Module:
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return nn.Sequential(layer, norm).eval()


EVERY_KIND = pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (lambda bias: nn.Conv1d(4, 6, 3, bias=bias), lambda a: nn.BatchNorm1d(6, affine=a), (4, 9)),
        (lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias), lambda a: nn.BatchNorm2d(6, affine=a), (4, 5, 5)),
        (lambda bias: nn.Conv2d(4, 4, 3, groups=4, bias=bias), lambda a: nn.BatchNorm2d(4, affine=a), (4, 5, 5)),
        (lambda bias: nn.ConvTranspose2d(4, 6, 2, bias=bias), lambda a: nn.BatchNorm2d(6, affine=a), (4, 5, 5)),
        (
            lambda bias: nn.ConvTranspose2d(4, 6, 2, groups=2, bias=bias),
            lambda a: nn.BatchNorm2d(6, affine=a),
            (4, 5, 5),
        ),
        (lambda bias: nn.Linear(4, 6, bias=bias), lambda a: nn.BatchNorm1d(6, affine=a), (4,)),
    ],
    ids=["conv1d", "grouped conv2d", "depthwise", "transposed", "grouped transposed", "linear"],
)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@EVERY_KIND
def test_batch_norm_folds_into_every_kind_of_layer(layer, norm, shape, bias: bool, affine: bool) -> None:
    model = normalized(layer(bias), norm(affine))
    graph = capture(model, (torch.randn(2, *shape),))
    assert len(targets(graph)) == 1
    x = torch.randn(3, *shape)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


class Called(nn.Module):
    """One layer called three times, with a module behind each call."""

    def __init__(self, layer: nn.Module, *behind: nn.Module) -> None:
        super().__init__()
        self.layer, self.behind = layer, nn.ModuleList(behind)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = (x, 2 * x, x.flip(-1))
        return [behind(self.layer(level)).relu() for level, behind in zip(levels, self.behind, strict=True)]


def weights(graph: torch.fx.GraphModule) -> set[str]:
    return {str(node.args[1].target) for node in graph.graph.nodes if ops.kind(node)}


@pytest.mark.parametrize("bias", [True, False])
@EVERY_KIND
def test_batch_norm_behind_every_call_of_a_layer_folds_once(layer, norm, shape, bias: bool) -> None:
    """An encoder of several pictures, a head over several levels. It stayed, and so did each batch norm in it."""
    shared = normalized(layer(bias), norm(True))
    model = Called(shared[0], *[shared[1]] * 3).eval()
    graph = capture(model, (torch.randn(2, *shape),))
    assert "batch_norm" not in targets(graph)
    assert weights(graph) == {"layer.weight"}
    assert set(graph.state_dict()) == {"layer.weight", "layer.bias"}
    x = torch.randn(3, *shape)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


class Siamese(nn.Module):
    """An encoder with shortcuts, of two pictures of their own sizes."""

    def __init__(self, networks: ModuleType) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*networks.conv_bn(3, 4), nn.ReLU(), networks.BasicBlock(4, 8, 2))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.encoder(a).mean((2, 3)) - self.encoder(b).mean((2, 3))


def test_the_encoder_of_a_siamese_network_folds(networks: ModuleType) -> None:
    model = networks.build(lambda: Siamese(networks))
    x = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 6, 6)
    graph = capture(model, x)
    assert targets(graph).count("conv2d") == 8
    assert "batch_norm" not in targets(graph)
    assert len(weights(graph)) == 4
    torch.testing.assert_close(graph(*x), model(*x), rtol=1e-4, atol=1e-5)


def test_batch_norms_in_a_row_fold_all() -> None:
    """The second of them was a KeyError."""
    first, second = (normalized(nn.Identity(), nn.BatchNorm2d(6))[1] for _ in range(2))
    model = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), first, second).eval()
    x = torch.randn(3, 4, 5, 5)
    graph = capture(model, (x,))
    assert targets(graph) == ["conv2d"]
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


class NormedTwice(nn.Module):
    """Two readers of one convolution, behind the same batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y).relu() + self.bn(y).sigmoid()


class NamedLikeABias(nn.Module):
    """A parameter with the name that a bias beside the weight would have."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.kernel_bias = nn.Parameter(torch.randn(4, 3, 1, 1)), nn.Parameter(torch.randn(4, 1, 1))
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.conv2d(x, self.kernel)).relu() * self.kernel_bias


@pytest.mark.parametrize("network", [NormedTwice, NamedLikeABias])
def test_batch_norm_folds_without_changing_anything_else(networks: ModuleType, network) -> None:
    model = networks.build(network)
    x = torch.randn(3, 3, 4, 4)
    graph = capture(model, (x,))
    assert "batch_norm" not in targets(graph)
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


def test_frozen_batch_norm_behind_every_call_folds_once() -> None:
    frozen, x = Frozen(nn.Identity()), torch.randn(3, 4, 8, 8)
    model = Called(nn.Conv2d(4, 6, 3, bias=False), frozen, frozen, frozen).eval()
    graph = capture(model, (x,))
    assert targets(graph).count("conv2d") == 3
    assert set(graph.state_dict()) == {"layer.weight", "layer.bias"}
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_other_frozen_batch_norms_behind_some_calls_stay() -> None:
    frozen, x = Frozen(nn.Identity()), torch.randn(3, 4, 8, 8)
    for other in (Frozen(nn.Identity()), nn.Identity()):
        model = Called(nn.Conv2d(4, 6, 3), frozen, frozen, other).eval()
        graph = capture(model, (x,))
        assert "add" in targets(graph)
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_affine_numbers_that_are_not_of_the_channels_stay() -> None:
    x = torch.randn(3, 4, 8, 8)
    read_elsewhere = capture(Frozen(nn.Conv2d(4, 6, 3), own=True).eval(), (x,))
    assert {"mul", "add"} <= set(targets(read_elsewhere))
    rows = capture(Frozen(nn.Conv2d(4, 6, 3), shape=(1, 1, 6, 1)).eval(), (x,))
    assert targets(rows) == ["conv2d", "mul", "add", "relu"]


class Tokens(nn.Module):
    """A batch norm over the tokens of [N, T, C], with T = C, which stays, and one over its channels."""

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
    assert [node.meta[UNFOLDED] for node in graph.graph.nodes if UNFOLDED in node.meta] == [
        "batch norm, not folded: it is not over the outputs of its layer"
    ]
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


def over_channels(name: str) -> nn.Module:
    """A linear layer on [N, T, C] (or [N, H, W, C]) with a batch norm over C behind it, as networks write it."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 6, bias=False), nn.Linear(6, 3)
            self.norm = (nn.BatchNorm2d if name in ("permuted", "inside") else nn.BatchNorm1d)(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(getattr(self, name)(self.first(x)).relu())

        def transposed(self, y: Tensor) -> Tensor:
            return self.norm(y.transpose(1, 2)).transpose(1, 2)

        def permuted(self, y: Tensor) -> Tensor:
            return self.norm(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

        def flattened(self, y: Tensor) -> Tensor:  # LeViT
            return self.norm(y.flatten(0, 1)).reshape_as(y)

        def viewed(self, y: Tensor) -> Tensor:
            n, t, c = y.shape
            return self.norm(y.reshape(n * t, c)).view(n, t, c)

        def inside(self, y: Tensor) -> Tensor:
            return self.norm(y.transpose(1, 2).unsqueeze(3)).squeeze(3).permute(0, 2, 1)

    return Network()


@pytest.mark.parametrize("name", ["transposed", "permuted", "flattened", "viewed", "inside"])
def test_batch_norm_folds_through_what_only_orders_outputs_otherwise(networks: ModuleType, name: str) -> None:
    model = networks.build(lambda: over_channels(name))
    shape = (4, 7, 5) if name == "permuted" else (4, 5)
    graph = capture(model, (torch.randn(2, *shape),))
    assert [each for each in targets(graph) if not each.startswith("sym_size")] == ["linear", "relu", "linear"]
    x = torch.randn(3, *shape)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


class Ways(nn.Module):
    """A linear layer behind which a transposition is, and then what `way` says."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.first, self.norm = way, nn.Linear(5, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        turned = y.transpose(1, 2)
        if self.way == "turned":
            return self.norm(turned) + turned
        if self.way == "as it was":
            return self.norm(turned) + y.mean()
        if self.way == "mixed":  # [N, T, C] read as if it were [N, C, T]
            return self.norm(y.reshape(x.shape[0], 6, -1))
        return self.norm(turned).reshape(y.shape)  # other elements than before: not undone


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("turned", "what its layer puts out is read elsewhere, too"),
        ("as it was", "what its layer puts out is read elsewhere, too"),
        ("mixed", "it is not over the outputs of its layer"),
        ("reordered", ""),
    ],
)
def test_batch_norm_behind_an_order_that_matters(networks: ModuleType, way: str, reason: str) -> None:
    model = networks.build(lambda: Ways(way))
    graph = capture(model, (torch.randn(2, 4, 5),))
    left = [node.meta[UNFOLDED] for node in graph.graph.nodes if UNFOLDED in node.meta]
    assert left == ([f"batch norm, not folded: {reason}"] if reason else [])
    assert {"transpose", "reshape"} & set(targets(graph))
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


class FrozenBatchNorm(Frozen):
    """Called as torchvision's is."""


@pytest.mark.parametrize("kind", [Frozen, FrozenBatchNorm])
@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda kind: kind(nn.Conv2d(4, 6, 3), own=True), "what its layer puts out is read elsewhere, too"),
        (lambda kind: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), kind(nn.Identity())), "no convolution or linear"),
        (lambda kind: Called(nn.Conv2d(4, 6, 3), norm := kind(nn.Identity()), norm, nn.Identity()),
         "its layer is also called without it"),
        (lambda kind: Called(nn.Conv2d(4, 6, 3), kind(nn.Identity()), kind(nn.Identity()), kind(nn.Identity())),
         "its layer is also called with other batch norms"),
    ],
)  # fmt: skip
def test_a_frozen_batch_norm_that_stays_is_called_so(kind: type[Frozen], network, reason: str) -> None:
    model, x = network(kind).eval(), torch.randn(3, 4, 8, 8)
    graph = capture(model, (x,))
    left = [node for node in graph.graph.nodes if UNFOLDED in node.meta]
    assert {ops.op_name(node) for node in left} == {"mul", "add"}
    what = "frozen batch norm" if kind is FrozenBatchNorm else "scale and shift of each channel"
    assert all(node.meta[UNFOLDED].startswith(f"{what}, not folded: {reason}") for node in left)


class ReadTwice(nn.Module):
    """The convolution's output is used in front of its batch norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.bn(y)


class SharedBias(nn.Module):
    """Two convolutions that add the same bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 3, 1, 1)), nn.Parameter(torch.randn(3, 3, 1, 1))
        self.bias, self.bn = nn.Parameter(torch.randn(3)), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.bn(F.conv2d(x, self.a, self.bias)), self.b, self.bias)


class Computed(nn.Module):
    """A convolution whose weight depends on the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bn = nn.Parameter(torch.randn(3, 3, 1, 1)), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.conv2d(x, self.weight * (x.shape[0] + 1)))


def called(*behind: type[nn.Module] | int) -> nn.Module:
    """A convolution with a batch norm behind each call, the same one for the same number, or something else."""
    norms: dict[int, nn.Module] = {}
    return Called(
        nn.Conv2d(3, 3, 1),
        *[norms.setdefault(b, nn.BatchNorm2d(3)) if isinstance(b, int) else b() for b in behind],
    )


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (ReadTwice, "what its layer puts out is read elsewhere"),
        (SharedBias, "the weight or bias of its layer is computed, or read elsewhere"),
        (Computed, "the weight or bias of its layer is computed, or read elsewhere"),
        (lambda: called(0, 1, 0), "its layer is also called with other batch norms"),
        (lambda: called(0, 1, 2), "its layer is also called with other batch norms"),
        (lambda: called(0, 0, nn.Identity), "its layer is also called without it"),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), "no convolution or linear layer"),
    ],
)
def test_batch_norm_stays_where_folding_would_change_something_else(networks: ModuleType, network, reason) -> None:
    model = networks.build(network)
    graph = capture(model, (torch.randn(2, 3, 4, 4),))
    left = [node for node in graph.graph.nodes if node.target is ops.aten.batch_norm.default]
    assert left
    assert all(node.meta[UNFOLDED].startswith(f"batch norm, not folded: {reason}") for node in left)
    x = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)
