"""What a run computes is linear in the number of blocks, all passes together: counted at the operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

import brecq
from brecq import QuantConfig, Recipe
from brecq.precision.measure import measure_sensitivity

SMALL = {"steps": 2, "batch_size": 8, "range_candidates": 4, "range_samples": 16}


class Chain(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(depth))
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = (x + layer(x)).relu()
        return self.head(x.mean((2, 3)))


class Convolved(TorchDispatchMode):
    """Counts the samples that pass a convolution, forward or backward."""

    samples = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(func) or "conv2d" in str(func):
            found = [value for value in args if isinstance(value, Tensor)]
            if found and not isinstance(found[0], FakeTensor):
                self.samples += found[0].shape[0]
        return func(*args, **(kwargs or {}))


def quantized(recipe: str, **changes: Any) -> Callable[[nn.Module, Tensor], object]:
    own = {name: changes.pop(name) for name in list(changes) if name in QuantConfig.__dataclass_fields__}
    made = Recipe.preset(recipe).replace(**{**SMALL, **changes})
    config = QuantConfig(first_last=None, recipe=made, **{"weights": 4, "activations": 4, **own})
    return lambda model, x: brecq.quantize(model, x, config, device="cpu")


def surveyed(model: nn.Module, x: Tensor) -> object:
    return measure_sensitivity(model, x, QuantConfig(recipe=Recipe.preset("fast").replace(**SMALL)), bits=(2, 4))


@pytest.mark.parametrize(
    "work",
    [
        quantized("fast", loss="fisher"),
        quantized("fast", tune_codes_lr=0.01, tune_features=0.1),
        quantized("instant", steps=0),
        quantized("paper", activation_steps=2),
        quantized("fast", granularity="layer", compensate=True),
        quantized("fast", method="rtn"),
        surveyed,
    ],
    ids=["fisher", "tuning", "instant", "paper", "layer", "rtn", "survey"],
)
def test_all_passes_together_are_linear_in_the_number_of_blocks(work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRECQ_KERNELS", "eager")
    counts = []
    for depth in (3, 5, 7):
        torch.manual_seed(0)
        model, x = Chain(depth).eval(), torch.randn(16, 3, 6, 6)
        with Convolved() as convolved:
            work(model, x)
        counts.append(convolved.samples)
    first, second = counts[1] - counts[0], counts[2] - counts[1]
    assert first > 0
    assert second <= first * 1.02  # a network whose every block costs more the later it comes would double it
