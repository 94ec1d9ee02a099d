"""Paddings with elements of the picture: codes are moved, and the convolution behind them stays one of integers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, QuantResult
from brecq.converted.plan import float_operators

MODES = ("reflect", "replicate", "circular")
TARGETS = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "litert", "cmsis-nn": "cmsis-nn"}


class Padded(nn.Module):
    """[N, 3, 7, 9] → [N, 5]: a convolution's own padding, and one that differs on every side."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.stem, self.body = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=2, padding_mode=mode)
        self.last, self.head = nn.Conv2d(8, 8, 3, stride=2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x).relu()).relu()
        return self.head(self.last(F.pad(x, (1, 3, 0, 2), mode=self.mode)).relu().mean((2, 3)))


def quantized(model: nn.Module, target: str | None = None) -> tuple[QuantResult, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(32, 3, 7, 9)
    return brecq.quantize(model.eval(), x, QuantConfig(8, 8, method="rtn", target=target)), x[:8]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("format", TARGETS)
def test_the_file_moves_codes(mode: str, format: str, tmp_path: Path) -> None:
    pytest.importorskip(
        {"onnx": "onnxruntime", "tflite": "ai_edge_litert"}.get(format, "brecq" if format[0] == "c" else format)
    )
    result, x = quantized(Padded(mode), TARGETS[format])
    path = tmp_path / ("m" + brecq.deploy.formats.find(format).suffix)
    brecq.export(result, path, format)
    found = brecq.verify(result, path, x, format=format)
    assert found.as_expected, found.failures
    assert found.simulator.identical == 100
    assert found.quantized.mean < 0.2
    assert found.exact is (format != "openvino")
    assert found.kernels is None or found.kernels.floating == 0


def test_a_number_that_is_on_no_grid_is_quantized_with_the_picture_around_it(tmp_path: Path) -> None:
    class Filled(Padded):
        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(self.stem(x).relu(), (1, 1, 1, 1), value=0.7)
            return self.head(self.body(x).relu().mean((2, 3)))

    result, x = quantized(Filled("zeros"), "onnxruntime")
    simulator = brecq.simulate(result)
    assert float_operators(simulator.completed.graph) == {"pad"}
    assert torch.allclose(simulator(x), result.model(x), atol=0.02)
    pytest.importorskip("onnxruntime")
    brecq.export(result, tmp_path / "m.onnx")
    found = brecq.verify(result, tmp_path / "m.onnx", x)
    assert found.kernels is not None
    assert found.kernels.floating == 0
    assert found.as_expected, found.failures
