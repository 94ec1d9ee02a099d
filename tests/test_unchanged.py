"""A model that ran is the model that it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq.capture.export import capture
from brecq.config import QuantConfig
from brecq.forward import evaluating


class Writer(nn.Module):
    """Counts, averages, bounds its weight, and keeps things."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.tied = self.head.weight
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("replaced", torch.zeros(2))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.count += 1
        self.average.mul_(0.9).add_(y.detach().mean((0, 2, 3)), alpha=0.1)
        return self.head(y.relu().mean((2, 3)))


class Bounded(Writer):
    """As EEGNet and its like do, in three ways."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache = x
        self.replaced = x.flatten()[:2].clone()
        self.conv.weight.data = torch.renorm(self.conv.weight.data, 2, 0, 0.5)
        self.head.weight.data.clamp_(-0.1, 0.1)
        with torch.no_grad():
            torch.mul(self.head.bias, 2, out=self.head.bias)
            torch._foreach_add_([self.average], 1.0)
        return super().forward(x)


def state(model: nn.Module) -> dict[str, object]:
    tensors = {name: (id(p), p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()}
    flags = {name: (module.training, len(module._forward_hooks)) for name, module in model.named_modules()}
    return {**tensors, "flags": flags, "calls": model.calls, "keys": set(vars(model))}


def trained(network: type[Writer]) -> Writer:
    model = network().train()
    model.head.eval()
    model.conv.bias.requires_grad_(False)
    model.head.bias.grad = torch.ones(5)
    model.conv.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("network", [Writer, Bounded])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_what_forward_writes_is_undone(network: type[Writer], mode: type) -> None:
    model = trained(network)
    before, values = state(model), copy.deepcopy(model.state_dict())
    with mode(), evaluating(model):
        model(torch.randn(2, 3, 6, 6))
        assert not any(module.training for module in model.modules())
        assert model.count == 1  # within, it works as always
    assert state(model) == before
    assert all(torch.equal(a, b) for a, b in zip(values.values(), model.state_dict().values(), strict=True))
    assert model.head.bias.grad is not None
    assert model.tied is model.head.weight


def test_nothing_is_copied_where_nothing_is_written() -> None:
    model = nn.Linear(3, 3)
    weight, pointer = model.weight, model.weight.data_ptr()
    with evaluating(model):
        model(torch.randn(2, 3)).relu_()
    assert model.weight is weight
    assert model.weight.data_ptr() == pointer


def test_quantize_and_evaluate_leave_the_model_as_it_was() -> None:
    model, x = trained(Writer), torch.randn(8, 3, 6, 6)
    before, values = state(model), copy.deepcopy(model.state_dict())
    result = brecq.quantize(model, x, QuantConfig(8, 8, method="rtn"))
    brecq.evaluate(result.model, brecq.Dataset((x,)), reference=model)
    assert state(model) == before
    assert all(torch.equal(a, b) for a, b in zip(values.values(), model.state_dict().values(), strict=True))
    assert not any("copy_" in str(node.target) for node in result.converted.graph.nodes)


class InPlace(nn.Module):
    """Normalizes its input where it lies, and takes an optional mask."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.fc(x.sub_(0.5).div_(0.3))
        return y if mask is None else y * mask


def test_inputs_are_left_as_they_were_too() -> None:
    model, x, labels = InPlace().eval(), torch.rand(8, 4), torch.arange(8) % 5
    before = x.clone()
    result = brecq.quantize(model, [(x, labels)], QuantConfig(8, 8, method="rtn"))
    evaluation = brecq.evaluate(result.model, brecq.Dataset((x,)), reference=model)
    assert torch.equal(x, before)
    assert evaluation.sqnr > 30


class Grids(nn.Module):
    """Keeps the places of its cells, in a list and a dictionary, as the heads of YOLO do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.grids, self.offsets = [torch.zeros(1)], {"nested": ([], {0})}
        self.offsets["nested"][0].append("first")

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        height, width = y.shape[-2:]
        if self.grids[0].shape[-2:] != y.shape[-2:]:
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            self.grids[0] = torch.stack((columns, rows)).type_as(y)
            self.offsets[height, width] = self.grids[0] - 0.5
            self.offsets["nested"][0].append(height)
            self.offsets["nested"][1].add(width)
        return y + self.offsets[height, width]


def test_lists_and_dictionaries_hold_what_they_held() -> None:
    model, x = Grids(), torch.rand(2, 3, 4, 5)
    grid = model.grids[0]
    for _ in range(2):  # an export leaves symbols behind, which a second one would stumble over
        captured = capture(model, (x,))
        assert model.grids == [grid]
        assert model.offsets == {"nested": (["first"], {0})}
    torch.testing.assert_close(captured(x), model(x))
    assert torch.is_tensor(model.offsets[4, 5])


class Recorder(nn.Module):
    """Hooks its layers when it first runs, as networks of transformers do that return hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "hooked"):
            for layer in self.layers:
                layer.register_forward_hook(lambda _module, _args, output: self.states.append(output))
            self.hooked = True
        self.states: list[Tensor] = []
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(torch.cat(self.states, -1))


def test_hooks_that_a_model_gives_itself_are_taken_away() -> None:
    model, x = Recorder(), torch.randn(16, 4)
    result = brecq.quantize(model, x, QuantConfig(8, 8, method="rtn"))
    assert not any(layer._forward_hooks for layer in model.layers)
    assert not hasattr(model, "hooked")
    assert brecq.evaluate(result.model, brecq.Dataset((x,)), reference=model).sqnr > 30
    assert model(x).shape == (16, 3)
