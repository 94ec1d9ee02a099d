"""Networks whose values have squares that float32 does not hold."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, Recipe
from brecq.errors import DataError


class Scaled(nn.Module):
    """What its second layer puts out is `scale` times what it would be."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4, bias=False)
        with torch.no_grad():
            self.second.weight *= scale
            self.second.bias *= scale

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu()).relu())


def quantize(scale: float, recipe: str, **settings: int) -> brecq.QuantResult:
    torch.manual_seed(0)
    config = QuantConfig(4, 8, recipe=Recipe.preset(recipe).replace(**settings))
    return brecq.quantize(Scaled(scale), torch.randn(64, 8), config)


@pytest.mark.parametrize("exponent", [-110, -70, -60, 60, 110])
def test_the_closed_form_is_the_same_in_any_unit(exponent: int) -> None:
    small, plain = quantize(2.0**exponent, "instant"), quantize(1.0, "instant")
    for found, expected in zip(small.report.blocks, plain.report.blocks, strict=True):
        assert math.isclose(found.error_after, expected.error_after, rel_tol=1e-2)
        assert 0 < found.error_after < 0.1


def test_what_cannot_be_learned_is_refused_by_its_block() -> None:
    with pytest.raises(DataError, match="block 'second' cannot be quantized: the squared error of its outputs"):
        quantize(1e30, "fast", steps=2)
