"""3-D convolutions in every format: they have no integer kernel in ONNX Runtime, and nothing may be wrong for that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, QuantResult
from brecq.evaluation import sqnr


class Volumes(nn.Module):
    """[N, 2, 4, 6, 6] → [N, 5], with a residual sum, stride, groups and padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(2, 8, 3, stride=(1, 2, 2), padding=1)
        self.body, self.mix = nn.Conv3d(8, 8, 3, padding=1, groups=4), nn.Conv3d(8, 8, (1, 3, 1), padding=(0, 1, 0))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.mix(self.body(x).relu())).relu().mean((2, 3, 4)))


@pytest.fixture(scope="module")
def case() -> tuple[QuantResult, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(32, 2, 4, 6, 6)
    return brecq.quantize(Volumes().eval(), x, QuantConfig(6, 8, method="rtn")), x[:8]


def decibels(expected: Tensor, found: Tensor) -> float:
    return sqnr(float(expected.square().sum()), float((expected - found).square().sum()))


def test_the_simulator_computes_what_the_network_does(case: tuple[QuantResult, Tensor]) -> None:
    result, x = case
    layers = [entry for entry in result.report.scope if entry.kind == "conv3d"]
    assert len(layers) == 3
    assert all("bit" in entry.weights for entry in layers)
    assert decibels(result.model(x), brecq.simulate(result)(x)) > 30


@pytest.mark.parametrize(("file", "needs"), [("m.onnx", "onnxruntime"), ("m.xml", "openvino")])
def test_the_file_computes_what_the_simulator_does(
    case: tuple[QuantResult, Tensor], tmp_path: Path, file: str, needs: str
) -> None:
    pytest.importorskip(needs, reason=f"needs {needs}")
    result, x = case
    brecq.export(result, tmp_path / file)
    found = brecq.verify(result, tmp_path / file, x)
    assert found.as_expected, found.failures
    assert found.simulator.mean < 1


def test_qonnx_executes_it(case: tuple[QuantResult, Tensor], tmp_path: Path) -> None:
    pytest.importorskip("qonnx", reason="needs qonnx: pip install 'brecq[qonnx]'")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.util.cleanup import cleanup_model

    result, x = case
    brecq.export(result, tmp_path / "m.onnx", "qonnx", batch=8)
    model = cleanup_model(ModelWrapper(str(tmp_path / "m.onnx")))
    found = execute_onnx(model, {model.graph.input[0].name: x.numpy()})[model.graph.output[0].name]
    assert decibels(result.model(x), torch.from_numpy(found)) > 30
