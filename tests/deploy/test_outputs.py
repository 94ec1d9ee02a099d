"""The names of a network's outputs, in every file that has names, and their order in the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, QuantResult
from brecq.deploy.against import distances
from brecq.deploy.complete import as_converted
from brecq.deploy.outputs import output_names
from brecq.errors import ExportError
from brecq.graph.outputs import returned


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


class Nested(Keypoints):
    """Maps by name in a list, a tensor beside them, and its input."""

    def forward(self, x: Tensor) -> dict[str, Any]:  # type: ignore[override]
        y = self.body(x)
        return {"head": [{"hm": self.heat(y), "wh": self.offset(y)}], "y": y, "x": x}


IN_DICTIONARIES = ["head.0.hm", "head.0.wh", "y", "x"]


@pytest.fixture(scope="module")
def nested() -> QuantResult:
    torch.manual_seed(0)
    return brecq.quantize(Nested().eval(), torch.rand(8, 3, 8, 8), QuantConfig(8, 8, method="rtn"))


def test_outputs_in_dictionaries_of_dictionaries_have_one_name_everywhere(
    nested: QuantResult, x: np.ndarray, tmp_path: Path
) -> None:
    assert [each.name for each in nested.report.outputs] == IN_DICTIONARIES
    assert "output x: inputs of the network, returned as they came" in nested.report.notes
    assert list(brecq.evaluate(nested.model, torch.from_numpy(x), reference=Nested()).outputs) == IN_DICTIONARIES
    nested.save(tmp_path / "out")
    for result in (nested, brecq.load(tmp_path / "out")):
        found = [name for name, _ in returned(as_converted(result).graph)]
        assert found == [name for name, _ in returned(result.converted)] == IN_DICTIONARIES  # type: ignore[arg-type]
        assert output_names(as_converted(result)) == ["head.0.hm", "head.0.wh", "y", "output_x"]


FILES = [("onnx", "onnxruntime"), ("tflite", "ai_edge_litert"), ("xml", "openvino")]


@pytest.mark.parametrize(("format", "needed"), FILES)
def test_files_call_them_so(nested: QuantResult, x: np.ndarray, tmp_path: Path, format: str, needed: str) -> None:
    pytest.importorskip(needed)
    path = brecq.export(nested, tmp_path / f"m.{format}").path
    assert not brecq.verify(nested, path, torch.from_numpy(x)).failures
    names = ["head.0.hm", "head.0.wh", "y", "output_x"]
    if format == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(path)
        assert [each.name for each in session.get_outputs()] == names
        far = distances(nested, path, Nested().eval(), [torch.from_numpy(x)])
        assert {f"output {name}" for name in IN_DICTIONARIES} <= {each.tensor for each in far}
    elif format == "xml":
        model = pytest.importorskip("openvino").Core().read_model(path)
        assert [name in each.get_names() for each, name in zip(model.outputs, names, strict=True)] == [True] * 4
    else:
        loaded = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path))
        assert sorted(loaded.get_signature_list()["serving_default"]["outputs"]) == sorted(names)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda a, b: a, ["output"]),
        (lambda a, b: (a, b), ["output_0", "output_1"]),
        (lambda a, b: {"logits": a}, ["logits"]),
        (lambda a, b: ({"a": a}, b), ["0.a", "1"]),
        (lambda a, b: {"a": {"b": a}, "a.b": b}, ["output_0", "output_1"]),
        (lambda a, b: {"a": a, "": b}, ["output_0", "output_1"]),
        (lambda a, b: {1: a, "1": b}, ["output_0", "output_1"]),
    ],
)
def test_names(make: Callable[[Tensor, Tensor], Any], names: list[str]) -> None:
    class Two(Keypoints):
        def forward(self, x: Tensor) -> Any:
            x = self.body(x)
            return make(self.heat(x), self.offset(x))

    result = brecq.quantize(Two().eval(), torch.rand(8, 3, 8, 8), QuantConfig(8, 8, method="rtn"))
    assert output_names(as_converted(result)) == names
