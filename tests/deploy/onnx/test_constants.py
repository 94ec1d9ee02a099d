"""Constants that are joined with activations: a class token, coordinates, positions. They need no recorded range."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, Recipe

RECIPE = Recipe.preset("fast").replace(steps=1, batch_size=4, range_candidates=5, tuning=0.0)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(10, 8, 3, padding=1)
        self.token, self.head = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 4), indexing="ij")
        place = torch.stack([rows, columns])[None].expand(x.shape[0], -1, -1, -1)
        x = F.relu(self.body(torch.cat([F.relu(self.stem(x)), place], 1)))
        x = x.flatten(2).transpose(1, 2) + torch.arange(16.0)[:, None] * 0.1
        return self.head(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))


@pytest.mark.parametrize("placement", ["output", "input"])
def test_constants_in_a_concatenation_reach_the_runtime(placement: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Joined().eval(), torch.randn(8, 3, 4, 4)
    result = brecq.quantize(model, x, QuantConfig(6, placement=placement, class_axis=-1, recipe=RECIPE))  # type: ignore[arg-type]
    brecq.export(result, tmp_path / "net.onnx")
    found = brecq.verify(result, tmp_path / "net.onnx", brecq.Dataset((x,)))
    assert found.quantized.agreement is not None
    assert found.quantized.agreement > 90
    assert found.quantized.mean < 2


class Asks(nn.Module):
    """Learned queries join tokens in front of a layer: a constant in the place of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.ask, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.query = nn.Parameter(
            torch.rand(1, 2, 8) * 3 - 0.5
        )  # on an asymmetric grid no code fits eight signed bits

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.query.expand(x.shape[0], -1, -1), self.keys(x)], 1)
        return self.head(self.ask(tokens).mean(1))


def test_a_learned_query_reaches_the_runtime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Asks().eval(), torch.randn(64, 6, 8)
    result = brecq.quantize(model, x, QuantConfig(8, 8, method="rtn"))
    codes = dict(result.converted.named_buffers())["query"]
    assert codes.dtype == torch.uint8
    brecq.export(result, tmp_path / "net.onnx")
    found = brecq.verify(result, tmp_path / "net.onnx", x)
    assert found.as_expected, found.failures
    assert found.quantized.mean < 1
