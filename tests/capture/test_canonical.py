"""Layers in disguise become layers, writes into slices get derivatives, and the network stays what it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brecq.capture.export import capture
from brecq.errors import CaptureError
from brecq.graph import ops
from brecq.graph.dataflow import Dataflow


class Product(nn.Module):
    """A linear layer written by hand on tokens [N, 4, 8]."""

    def __init__(self, write: Callable[[Product, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))
        self.heads, self.tokens = nn.Parameter(torch.randn(8, 2, 3)), nn.Parameter(torch.randn(5, 4))
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self, x)


PRODUCTS: dict[str, Callable[[Product, Tensor], Tensor]] = {
    "addmm": lambda m, x: torch.addmm(m.b, x.reshape(-1, 8), m.w).view(x.shape[0], 4, 6),
    "mm": lambda m, x: torch.mm(x[:, 0], m.w),
    "matmul": lambda m, x: x @ m.w,
    "matmul_left": lambda m, x: m.tokens @ x,
    "inner": lambda m, x: torch.inner(x, m.w.t()),
    "tensordot": lambda m, x: torch.tensordot(x, m.w, dims=1),
    "einsum": lambda m, x: torch.einsum("btc,chd->bhtd", x, m.heads),
    "einsum_left": lambda m, x: torch.einsum("st,btc->bcs", m.tokens, x),
    "einsum_dots": lambda m, x: torch.einsum("...c,cd", x, m.w),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_with_a_parameter_is_a_linear_layer(name: str) -> None:
    torch.manual_seed(0)
    model, x = Product(PRODUCTS[name]), torch.randn(3, 4, 8)
    graph = capture(model, [x[:2]])
    flow = Dataflow(graph)
    layers = [node for node in flow.ops if ops.kind(node) == "linear"]
    assert len(layers) == 1
    assert layers[0].args[1].op == "get_attr"
    assert flow.layers[flow.index[layers[0]]] in ("w", "heads", "tokens")
    assert flow.is_batch(layers[0])
    torch.testing.assert_close(graph(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_matrix_for_each_head_is_no_linear_layer() -> None:
    model = Product(lambda m, x: torch.einsum("bhi,hio->bho", x.view(-1, 4, 8), m.heads.view(4, 4, 3).repeat(1, 2, 1)))
    graph = capture(model, [torch.randn(2, 4, 8)])
    assert not any(ops.kind(node) for node in graph.graph.nodes)


def test_the_general_convolution_is_a_convolution() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8, 4, 2, 2))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.convolution(x, self.a, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
            return torch.convolution(x, self.b, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 2)

    model, x = Net(), torch.randn(2, 3, 6, 6)
    graph = capture(model, [x])
    assert [ops.kind(node) for node in graph.graph.nodes if ops.kind(node)] == ["conv2d", "conv_transpose2d"]
    assert torch.equal(graph(x), model(x))


def write_slice(y: Tensor) -> None:
    y[:, 2:4] = y[:, :2] * 0.5


def write_scaled(y: Tensor) -> None:
    y[:, :3] *= 2


def write_number(y: Tensor) -> None:
    y[:, 1] = 1.5


def write_zero(y: Tensor) -> None:
    y[:, 1].zero_()


def write_fill(y: Tensor) -> None:
    y[:, 0].fill_(2.0)


def write_copy(y: Tensor) -> None:
    y[:, 1:3].copy_(y[:, :1])


def write_mask(y: Tensor) -> None:
    y[y < 0] = 0


def write_index(y: Tensor) -> None:
    y[:, torch.tensor([0, 2])] = y[:, 1:3] + 1


def write_diagonal(y: Tensor) -> None:
    y.diagonal(dim1=2, dim2=3).add_(1)


WRITES = (
    write_slice, write_scaled, write_number, write_zero, write_fill, write_copy, write_mask, write_index,
    write_diagonal,
)  # fmt: skip


@pytest.mark.parametrize("write", WRITES)
def test_writing_into_slices_has_a_derivative(write: Callable[[Tensor], None]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            write(y)
            return y

    torch.manual_seed(0)
    model, x = Net(), torch.randn(3, 3, 6, 6)
    graph = capture(model, [x[:2]])
    assert torch.equal(graph(x), model(x))
    graph.get_parameter("conv.weight").requires_grad_()
    with torch.enable_grad():
        ours, theirs = (torch.autograd.grad(m(x).square().sum(), m.conv.weight)[0] for m in (graph, model))
    torch.testing.assert_close(ours, theirs)


def test_an_operator_without_derivative_is_refused_before_learning() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.heaviside(F.relu(self.conv(x)), torch.ones(()))

    with pytest.raises(CaptureError, match="heaviside has no derivative"):
        capture(Net(), [torch.randn(2, 3, 6, 6)])


def test_symbols_of_bits_have_names() -> None:
    class Masks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x > 0, x < 1
            number = (a.int() << 2) | (b.int() & 1)
            return torch.where((a & b) ^ (a | b), x, 0.0) + (number >> 1)

    x = torch.randn(3, 8)
    graph = capture(Masks(), [x[:2]])
    assert torch.equal(graph(x), Masks()(x))
    assert not any("__" in str(node.target) for node in graph.graph.nodes)


class Squeezes(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[N, 3, 1, 1]."""
        again = x.squeeze(-1).squeeze(-1).squeeze(-1)
        return x.squeeze(1) + 1, x.squeeze((1, -1)), again, x.squeeze((2, 3)), x.squeeze(), again.squeeze()


def test_a_squeeze_names_the_dimensions_that_go() -> None:
    """ONNX refuses to squeeze a dimension of another size than 1, which PyTorch passes over; and of a file that runs
    one sample at a time the samples must not go."""
    x = torch.randn(4, 3, 1, 1)
    graph = capture(Squeezes(), [x[:2]])
    for node in graph.graph.nodes:
        if "squeeze" in str(node.target):
            sizes = node.args[0].meta["val"].shape
            dims = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
            assert [sizes[dim] for dim in dims] == [1] * len(dims)
    for found, expected in zip(graph(x), Squeezes()(x), strict=True):
        assert torch.equal(found, expected)
    assert [len(each) for each in graph(x[:1])] == [1] * 6


class Pooled(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv1d(3, 4, 3), pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (nn.AvgPool1d(2), "avg_pool2d"),
        (nn.AvgPool1d(3, 2, 1), "avg_pool2d"),
        (nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), "avg_pool2d"),
        (nn.AdaptiveAvgPool1d(1), "adaptive_avg_pool2d"),
        (nn.AdaptiveAvgPool1d(5), "adaptive_avg_pool2d"),
        (nn.AdaptiveMaxPool1d(1), "amax"),
        (nn.AdaptiveMaxPool1d(4), "adaptive_max_pool1d"),
    ],
    ids=str,
)
def test_sequences_are_pooled_as_pictures(pool: nn.Module, expected: str) -> None:
    torch.manual_seed(0)
    model, x = Pooled(pool), torch.randn(5, 3, 23)
    graph = capture(model, [x[:2]])
    assert expected in {ops.op_name(node) for node in graph.graph.nodes if node.op == "call_function"}
    torch.testing.assert_close(graph(x), model(x))
    assert {node.meta["val"].dim() for node in graph.graph.nodes if "squeeze" in str(node.target)} <= {3, 4}


def test_the_largest_value_of_a_picture_by_adaptive_pooling() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            one, places = F.adaptive_max_pool2d(x, 1, return_indices=True)
            return F.adaptive_max_pool2d(x, 1), F.adaptive_max_pool2d(x, (1, 1)), one, places

    x = torch.randn(3, 4, 7, 6)
    graph = capture(Both(), [x[:2]])
    names = [ops.op_name(node) for node in graph.graph.nodes if node.op == "call_function"]
    assert (names.count("amax"), names.count("adaptive_max_pool2d")) == (2, 1)
    assert all(torch.equal(a, b) for a, b in zip(graph(x), Both()(x), strict=True))
