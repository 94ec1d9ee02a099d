"""Files with a fixed batch size, of networks whose samples know of each other and of outputs without samples."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, QuantResult
from brecq.deploy.complete import complete
from brecq.deploy.runtime import open_file, run_in_batches
from brecq.deploy.samples import probe_batches
from brecq.errors import ConfigError, DataError, ExportError


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.register_buffer("table", torch.arange(7.0))

    def scores(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


class Plain(Base):
    def forward(self, x: Tensor) -> Any:
        return self.scores(x)


class BatchMean(Base):
    def forward(self, x: Tensor) -> Any:
        y = self.scores(x)
        return y - y.mean(0, keepdim=True)


class First(Base):
    def forward(self, x: Tensor) -> Any:
        y = self.scores(x)
        return y - y[:1]


class Across(Base):
    """Attention with the samples in the place of tokens."""

    def forward(self, x: Tensor) -> Any:
        y = self.scores(x)
        return torch.softmax(y @ y.transpose(0, 1), 1) @ y


class Flat(Base):
    def forward(self, x: Tensor) -> Any:
        return self.scores(x).reshape(-1)


class Constants(Base):
    """A number, and a vector as long as the batch of two that programs are looked at with."""

    def forward(self, x: Tensor) -> Any:
        return self.scores(x), self.table.sum(), self.table[:2]


MIXED = {
    BatchMean: "the output of sub",
    First: "the output of sub",
    Across: "the output of matmul",
    Flat: "output, which",
}


@cache
def quantized(kind: type[Base]) -> tuple[QuantResult, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 6, 6)
    return brecq.quantize(kind().eval(), x, QuantConfig(8, 8, method="rtn")), x


@pytest.mark.parametrize("kind", [Plain, *MIXED, Constants])
def test_what_a_network_does_with_its_batch(kind: type[Base]) -> None:
    found = probe_batches(complete(quantized(kind)[0]))
    assert found.mixed.startswith(MIXED[kind]) if kind in MIXED else not found.mixed
    assert found.bare == {Flat: (0,), Constants: (1, 2)}.get(kind, ())


def test_one_sample_twice_as_example_hides_nothing() -> None:
    torch.manual_seed(0)
    result = brecq.quantize(BatchMean().eval(), torch.randn(1, 3, 6, 6), QuantConfig(8, 8, method="rtn"))
    assert probe_batches(complete(result)).mixed


@pytest.mark.parametrize("format", ["tflite", "cmsis-nn", "executorch", "qonnx"])
@pytest.mark.parametrize("kind", [BatchMean, Flat])
def test_formats_with_a_fixed_batch_ask_for_how_many(tmp_path: Path, kind: type[Base], format: str) -> None:
    needed = {"tflite": "ai_edge_litert", "executorch": "executorch", "qonnx": "onnx"}
    if format in needed:
        pytest.importorskip(needed[format])
    with pytest.raises(ExportError, match="mixes the samples of a batch"):
        brecq.export(quantized(kind)[0], tmp_path / "file", format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", MIXED)
def test_a_file_for_eight_computes_what_the_network_does_of_eight(tmp_path: Path, kind: type[Base]) -> None:
    pytest.importorskip("ai_edge_litert")
    result, x = quantized(kind)
    exported = brecq.export(result, tmp_path / "m.tflite", batch=8)
    assert any("batches of exactly 8" in note for note in exported.notes)
    assert brecq.verify(result, exported.path, x).as_expected
    runner, _ = open_file(exported.path)
    found = torch.from_numpy(runner(x[:8].numpy())[0])
    torch.testing.assert_close(found, result.model(x[:8]), atol=0.05, rtol=0)
    assert brecq.verify(result, exported.path, [x[:9], x[:3]]).samples == 8  # what is left over is left out
    with pytest.raises(DataError, match="no batch with the 8 that the file takes together"):
        brecq.verify(result, exported.path, x[:6])


def test_outputs_without_samples_are_in_the_file(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    result, x = quantized(Constants)
    exported = brecq.export(result, tmp_path / "m.tflite")
    runner, _ = open_file(exported.path)
    _, total, first = runner(x[:1].numpy())
    assert (total, first.tolist()) == (21, [0, 1])
    assert brecq.verify(result, exported.path, x).as_expected
    with pytest.raises(ConfigError, match=r"output 1 of the file has shape \[\]"):
        runner(x.numpy())


def test_runs_of_a_fixed_batch_are_put_together() -> None:
    def run(values: list[np.ndarray]) -> list[np.ndarray]:
        assert len(values[0]) == 4
        return [2 * values[0]]

    x = np.arange(10.0)
    np.testing.assert_array_equal(run_in_batches(run, [x], 4)[0], 2 * x)


def test_a_target_with_a_fixed_batch_may_be_learned_for(tmp_path: Path) -> None:
    """Only the export has to know the batch size; nothing is lost by asking then."""
    pytest.importorskip("ai_edge_litert")
    torch.manual_seed(0)
    x = torch.randn(16, 3, 6, 6)
    result = brecq.quantize(BatchMean().eval(), x, QuantConfig(8, 8, target="litert", recipe=brecq.Recipe(steps=0)))
    assert brecq.verify(result, brecq.export(result, tmp_path / "m.tflite", batch=4).path, x).as_expected


def test_a_fixed_onnx_file_runs_any_number_of_samples(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    x = torch.randn(10, 3, 6, 6)
    config = QuantConfig(8, 8, method="rtn", target="tensorrt")
    result = brecq.quantize(Constants().eval(), x, config)
    exported = brecq.export(result, tmp_path / "m.onnx", "tensorrt", batch=5)
    assert brecq.verify(result, exported.path, x, format="tensorrt").as_expected


def test_onnx_outputs_are_called_batches_only_where_they_are(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = brecq.export(quantized(Flat)[0], tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape != ["batch"]
    assert session.get_inputs()[0].shape == ["batch", 3, 6, 6]
