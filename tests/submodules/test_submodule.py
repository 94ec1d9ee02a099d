"""A submodule is recorded with the inputs that it receives, and put back into a copy."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from brecq.errors import ConfigError
from brecq.submodules.submodule import Submodule


def test_records_what_the_submodule_receives(networks: ModuleType) -> None:
    model = networks.build(networks.ResNet)
    x = torch.randn(130, 3, 16, 16)  # three batches
    found = Submodule(model, "layer1.1", (x,))
    assert found.module is model.layer1[1]
    assert len(found.inputs) == 1
    # the block adds in place: what it received must have been copied before
    expected = model.layer1[0](model.relu(model.bn1(model.conv1(x))))
    torch.testing.assert_close(found.inputs[0], expected)


def test_records_in_eval_mode_and_restores_modes(networks: ModuleType) -> None:
    model = networks.build(networks.ResNet).train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    statistics = model.layer1[0].bn1.running_mean.clone()
    Submodule(model, "layer2", (torch.randn(4, 3, 16, 16),))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.layer1[0].bn1.running_mean, statistics)
    assert not model.layer2._forward_pre_hooks


def test_puts_back_into_a_copy(networks: ModuleType) -> None:
    model = networks.build(networks.ResNet)
    found = Submodule(model, "layer1.1", (torch.randn(4, 3, 16, 16),))
    whole = found.put_back(nn.Identity())
    assert isinstance(whole.layer1[1], nn.Identity)
    assert isinstance(model.layer1[1], networks.BasicBlock)
    x = torch.randn(2, 3, 16, 16)
    assert not torch.equal(whole(x), model(x))
    assert torch.equal(found.put_back(found.module)(x), model(x))


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.keyword, self.number, self.unused = (nn.Linear(4, 4) for _ in range(4))
        self.number = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        return self.number(self.keyword(input=self.twice(self.twice(x))), 2)


class Scaled(nn.Module):
    def forward(self, x: Tensor, factor: int) -> Tensor:
        return x * factor


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("backbone", r"no submodule 'backbone'; choose one of twice, keyword"),
        ("", "no submodule ''"),
        ("twice", "'twice' is called 2 times per forward pass"),
        ("unused", "'unused' is called 0 times per forward pass"),
        ("number", "called with factor=int; only tensors can be recorded"),
    ],
)
def test_errors(name: str, message: str) -> None:
    model = Several()
    with pytest.raises(ConfigError, match=message):
        Submodule(model, name, (torch.randn(3, 4),))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_records_and_replaces_what_is_called_by_name() -> None:
    model = Several()
    x = torch.randn(3, 4)
    found = Submodule(model, "keyword", (x,))
    torch.testing.assert_close(found.inputs["input"], model.twice(model.twice(x)))
    torch.testing.assert_close(found.put_back(found.module)(x), model(x))


def test_arguments_that_are_defaults_are_left_out() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, None, y=x + 1, cache=False)

    class Inner(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, y: object = None, cache: bool = False) -> Tensor:
            return x - y if mask is None else mask

    class TensorsOnly(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x - y

    model, x = Outer(), torch.randn(3, 4)
    found = Submodule(model, "inner", (x,))
    assert list(found.inputs) == ["x", "y"]
    torch.testing.assert_close(found.put_back(TensorsOnly())(x), model(x))
