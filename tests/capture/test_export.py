"""Capture: what comes out computes what the model computes, in place of nothing, for any batch size."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from brecq.capture.export import _exported, capture
from brecq.errors import CaptureError
from brecq.graph.shapes import batch_dim

ALL = [
    "ResNet", "MobileNet", "SENet", "ConcatNet", "ViT", "UNet", "Functional", "TwoBranch", "FPN", "Signal",
    "Standardized", "Recurrent",
]  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_computes_what_the_model_computes_for_another_batch_size(captured, networks: ModuleType, name: str) -> None:
    model = networks.build(getattr(networks, name))
    inputs = networks.inputs(model, samples=5)
    expected, found = tree_leaves(model(*inputs)), tree_leaves(captured(name)(*inputs))
    assert [value.shape for value in found] == [value.shape for value in expected]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_is_functional_and_in_eval_mode(captured, name: str) -> None:
    targets = [node.target for node in captured(name).graph.nodes if node.op == "call_function"]
    operators = [target for target in targets if isinstance(target, torch._ops.OpOverload)]
    assert operators
    assert [target for target in operators if target._schema.is_mutable] == []
    assert [target for target in operators if "batch_norm" in str(target) or "dropout" in str(target)] == []


@pytest.mark.parametrize("name", ALL)
def test_exports_the_same_operators_on_a_cuda_device(networks: ModuleType, name: str) -> None:
    """There PyTorch asks how large a batch is before it chooses a kernel; tensors without values show it anywhere."""
    here, there = networks.build(getattr(networks, name)), networks.build(getattr(networks, name))
    inputs = networks.inputs(here)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in there.modules():
            for tensors in (module._parameters, module._buffers):
                for key, value in tensors.items():
                    made = None if value is None else torch.empty_like(value, device="cuda")
                    tensors[key] = nn.Parameter(made) if isinstance(value, nn.Parameter) else made
        moved = tuple(torch.empty_like(value, device="cuda") for value in inputs)
    programs = (_exported(here, inputs, batch_dim(), False), _exported(there, moved, batch_dim(), False))
    expected, found = ([str(node.target) for node in program.graph.nodes] for program in programs)
    assert found == expected


def test_leaves_the_model_alone(networks: ModuleType) -> None:
    model = networks.build(networks.ResNet)
    model.train()
    model.bn1.eval()
    model.fc.weight.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {name: value.requires_grad for name, value in model.named_parameters()}
    x = torch.randn(2, 3, 16, 16)

    graph = capture(model, (x,))
    for parameter in graph.parameters():
        parameter.data = parameter.data.double()  # what `.to(device)` does

    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: value.requires_grad for name, value in model.named_parameters()} == grads
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())


def test_batches_of_one(captured, networks: ModuleType) -> None:
    model = networks.build(networks.ResNet)
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(captured("ResNet")(x), model(x), rtol=1e-4, atol=1e-5)


def test_parameters_are_frozen(captured) -> None:
    assert not any(parameter.requires_grad for parameter in captured("ResNet").parameters())


@pytest.mark.parametrize("name", ["meta", "graph", "code"])
def test_names_that_graphs_keep_for_themselves(name: str) -> None:
    model = nn.Sequential()
    model.add_module(name, nn.Linear(4, 4))
    with pytest.raises(CaptureError, match=f"calls a part of itself '{name}', .* rename it, such as {name}_"):
        capture(model.eval(), (torch.randn(2, 4),))


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class OneBatchSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.token.expand(int(x.shape[0]), -1)


class Failing(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 4), middle, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class Remembering(nn.Module):
    """Makes its grid anew where the batch has another shape than the last one, as YOLO's heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shape, self.sizes = nn.Conv2d(3, 2, 3, padding=1), None, [None]
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.shape != y.shape or self.sizes[0] != y.shape:
            self.grid = torch.arange(y.shape[-1]).type_as(y).expand(y.shape) + 0.5
            self.shape, self.sizes[0] = y.shape, y.shape
        return y + self.grid


@pytest.mark.parametrize("any_size", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_model_that_remembers_the_sizes_of_a_batch(batch: int, any_size: bool) -> None:
    model = Remembering().eval()
    last = model(torch.rand(batch, 3, 4, 5))
    shape = model.shape
    graph = capture(model, (torch.rand(2, 3, 4, 5),), any_size=any_size)
    assert (model.shape, model.sizes) == (shape, [last.shape])
    for size in ((4, 5), (6, 7)) if any_size else ((4, 5),):
        for count in (1, 2, 3, 5):
            x = torch.rand(count, 3, *size)
            torch.testing.assert_close(graph(x), model(x))


class Queries(nn.Module):
    """As many queries as there are samples, which `len` counts."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.fc = nn.Parameter(torch.randn(1, 3, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.query.expand(len(x), -1, -1), self.fc(x)[:, None]]
        return torch.cat(parts, len(parts) - 1)


def test_the_length_of_a_batch_is_its_size() -> None:
    model = Queries().eval()
    graph = capture(model, (torch.randn(2, 4),))
    for count in (1, 3):
        x = torch.randn(count, 4)
        torch.testing.assert_close(graph(x), model(x))
    assert "len" not in globals()


def test_error_names_the_module_with_data_dependent_control_flow() -> None:
    middle = nn.Sequential(nn.Linear(4, 4), DataDependent(), nn.Linear(4, 4))
    parts = r"submodules=\['first', 'last'\] in Python, --submodule first --submodule last on"
    with pytest.raises(CaptureError, match=rf"(?s)submodule 'middle.*data-dependent control flow.*{parts}"):
        capture(Failing(middle), (torch.randn(2, 4),))


class Anchors(nn.Module):
    """Reads a number off a tensor, as the heads of some detectors do with their strides."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stride", torch.tensor([8.0, 16.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.full(x.shape[-1:], float(self.stride[1]))


@pytest.mark.parametrize("layers", [2, 12])
def test_error_names_the_line_to_blame_and_the_parts_of_a_flat_list(layers: int) -> None:
    model = nn.ModuleDict({"model": nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)), Anchors())})
    model.forward = model["model"].forward  # type: ignore[method-assign]
    line = r"'model\.\d+' \(Anchors\) at test_export\.py, line \d+ \(return x \* torch\.full.*\): .*float\(t\)"
    named = {2: r"\['model\.0', 'model\.1'\] in", 12: r"\['model\.0', 'model\.1', \.\.\., 'model\.11'\] in"}[layers]
    with pytest.raises(CaptureError, match=rf"(?s){line}.*submodules={named}"):
        capture(model, (torch.randn(2, 4),))


def test_error_of_a_network_that_is_one_part_names_no_other() -> None:
    with pytest.raises(CaptureError, match=r"(?s)cannot capture Anchors at test_export\.py, line \d+ .*numbers\)\.$"):
        capture(Anchors(), (torch.randn(2, 4),))


class Suppressing(nn.Module):
    """Chooses among what its layers found by what is in it, as non-maximum suppression does."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.backbone(x))
        return torch.stack([y.sum(), *y.flatten().round().unique().unbind()])


def test_a_model_whose_own_forward_is_to_blame_is_named_by_its_class(capfd: pytest.CaptureFixture[str]) -> None:
    parts = r"submodules=\['backbone', 'head'\] in Python, --submodule backbone --submodule head on"
    line = r"test_export\.py, line \d+ .*unique"
    with pytest.raises(CaptureError, match=rf"(?s)cannot capture Suppressing at {line}.*{parts}"):
        capture(Suppressing(), (torch.randn(2, 4),))
    assert "".join(capfd.readouterr()) == ""  # torch prints the program that it has so far


def test_error_names_the_module_that_fixes_the_batch_size() -> None:
    with pytest.raises(
        CaptureError, match=r"(?s)'middle' \(OneBatchSize\): it works for one batch size.*x\.shape\[0\]"
    ):
        capture(Failing(OneBatchSize()), (torch.randn(2, 4),))


def test_error_of_a_model_that_does_not_run() -> None:
    with pytest.raises(CaptureError, match=r"does not run on the example inputs: RuntimeError"):
        capture(nn.Linear(4, 4), (torch.randn(2, 5),))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "no tensor with a batch dimension"),
        ((3,), "no tensor with a batch dimension"),
        ((torch.randn(1, 4),), r"batch sizes \[1\]"),
        ((torch.randn(2, 4), torch.randn(3, 4)), r"batch sizes \[2, 3\]"),
    ],
)
def test_bad_example_inputs(inputs: tuple[object, ...], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(nn.Linear(4, 4), inputs)
