"""A network that returns its input returns what it was given, quantized or not, in PyTorch and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig
from brecq.deploy.runtime import open_file
from brecq.errors import ExportError


class Returning(nn.Module):
    """Returns its input, views and parts of it beside what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        y = (x + self.conv(x)).relu()
        moved = (x, x.flatten(1), x[:, :2], torch.cat([x, x.flip(3)], 1), x.permute(0, 2, 3, 1))
        return self.fc(y.mean((2, 3))), *moved


X = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
CONFIGS: list[dict[str, Any]] = [{}, {"placement": "input"}, {"target": "litert"}, {"target": "onnxruntime"}]


def quantized(**config: Any) -> tuple[nn.Module, brecq.QuantResult]:
    torch.manual_seed(0)
    model = Returning().eval()
    return model, brecq.quantize(model, X, QuantConfig(8, 8, method="rtn", **config))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_returned_inputs_stay_as_they_are(config: dict[str, Any]) -> None:
    model, result = quantized(**config)
    scores, *moved = result.model(X)
    expected, *same = model(X)
    assert 0 < (scores - expected).abs().max() < 0.1  # what is computed of the input is quantized
    for found, value in zip(moved, same, strict=True):
        assert torch.equal(found, value)
    assert "outputs 1, 2, 3, 4, 5: inputs of the network, returned as they came" in result.report.notes


@pytest.mark.parametrize(("format", "needed"), [("onnx", "onnxruntime"), ("tflite", "ai_edge_litert")])
@pytest.mark.parametrize("config", CONFIGS[:2], ids=str)
def test_and_in_files(tmp_path: Path, config: dict[str, Any], format: str, needed: str) -> None:
    pytest.importorskip(needed)
    model, result = quantized(**config)
    exported = brecq.export(result, tmp_path / f"m.{format}")
    runner, _ = open_file(exported.path)
    for found, value in zip(runner(X.numpy())[1:], model(X)[1:], strict=True):
        assert torch.equal(torch.from_numpy(found), value)
    assert brecq.verify(result, exported.path, X).as_expected


def test_where_there_are_codes_alone_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"input x is read by .*leave it out of what forward returns"):
        brecq.export(quantized()[1], tmp_path / "c", "cmsis-nn")


def test_other_networks_say_nothing() -> None:
    result = brecq.quantize(nn.Sequential(nn.Flatten(), nn.Linear(108, 2)), X, QuantConfig(8, 8, method="rtn"))
    assert not any("returned as they came" in note for note in result.report.notes)
