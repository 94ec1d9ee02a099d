"""The names of a network's outputs, in every file that has names, and their order in the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, QuantResult
from brecq.errors import ExportError


class Keypoints(nn.Module):
    """Its modules are called as its outputs are, and one output is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.heat, self.offset = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        heat = self.heat(x)
        return {"heat": heat, "offset": self.offset(x), "again": heat}


NAMES = ["heat", "offset", "again"]


@pytest.fixture(scope="module")
def result() -> QuantResult:
    torch.manual_seed(0)
    config = QuantConfig(8, 8, method="rtn", weight_scheme="symmetric")
    return brecq.quantize(Keypoints(), torch.rand(8, 3, 8, 8), config)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32)


def check(found: list[np.ndarray], result: QuantResult, x: np.ndarray) -> None:
    """Outputs are the network's own, in the order of its names."""
    expected = result.model(torch.from_numpy(x))
    assert list(expected) == NAMES
    for value, name in zip(found, NAMES, strict=True):
        assert np.abs(value - expected[name].detach().numpy()).max() < 0.05, name


def test_litert(result: QuantResult, x: np.ndarray, tmp_path: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    path = brecq.export(result, tmp_path / "m.tflite", "tflite").path
    loaded = interpreter.Interpreter(str(path))
    found = loaded.get_signature_runner()(x=x.transpose(0, 2, 3, 1))
    assert sorted(found) == sorted(NAMES)
    check([found[name].transpose(0, 3, 1, 2) for name in NAMES], result, x)
    assert [each["name"] for each in loaded.get_output_details()] == NAMES


def test_onnx(result: QuantResult, x: np.ndarray, tmp_path: Path) -> None:
    session = pytest.importorskip("onnxruntime").InferenceSession(brecq.export(result, tmp_path / "m.onnx").path)
    check(session.run(NAMES, {"x": x}), result, x)
    assert [each.name for each in session.get_outputs()] == NAMES


def test_openvino(result: QuantResult, x: np.ndarray, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    compiled = openvino.compile_model(brecq.export(result, tmp_path / "m.xml", "openvino").path, "CPU")
    found = compiled(x)
    check([found[name] for name in NAMES], result, x)


def test_pt2(result: QuantResult, x: np.ndarray, tmp_path: Path) -> None:
    path = brecq.export(result, tmp_path / "m.pt2", "pt2").path
    found = torch.export.load(path).module()(torch.from_numpy(x))
    assert list(found) == NAMES
    check([found[name].detach().numpy() for name in NAMES], result, x)


def test_files_without_names_say_in_which_order_outputs_come(result: QuantResult, tmp_path: Path) -> None:
    class Once(Keypoints):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {name: value for name, value in super().forward(x).items() if name != "again"}

    once = brecq.quantize(Once(), torch.rand(8, 3, 8, 8), result.config)
    notes = brecq.export(once, tmp_path / "c", "cmsis-nn").notes
    assert "outputs have no names there, and come in this order: heat, offset" in notes
    with pytest.raises(ExportError, match="the output again is heat again; return it once"):
        brecq.export(result, tmp_path / "d", "cmsis-nn")
