"""QONNX: executed by the qonnx package, a file computes what the converted program computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantResult
from brecq.errors import ConfigError, ExportError

Quantized = Callable[..., QuantResult]

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'brecq[onnx]'")

SYMMETRIC = {"weight_scheme": "symmetric", "activation_scheme": "symmetric"}


def execute(path: Path, x: np.ndarray) -> tuple[np.ndarray, Any]:
    pytest.importorskip("qonnx", reason="needs qonnx: pip install 'brecq[qonnx]'")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.util.cleanup import cleanup_model

    model = cleanup_model(ModelWrapper(str(path)))
    return execute_onnx(model, {model.graph.input[0].name: x})[model.graph.output[0].name], model


@pytest.mark.parametrize(
    ("name", "weights", "activations", "options"),
    [("ResNet", 3, 4, SYMMETRIC), ("UNet", 5, 6, {})],
)
def test_qonnx_executes_what_was_measured(
    networks: ModuleType,
    quantized: Quantized,
    tmp_path: Path,
    name: str,
    weights: int,
    activations: int,
    options: dict[str, Any],
) -> None:
    pytest.importorskip("qonnx", reason="needs qonnx: pip install 'brecq[qonnx]'")
    result = quantized(name, weights, activations, **options)
    exported = brecq.export(result, tmp_path / "m.onnx", "qonnx", batch=2)  # three samples: one batch is not full
    x = networks.inputs(networks.build(getattr(networks, name)), 3, seed=5)[0]
    found = brecq.verify(result, exported.path, x, format="qonnx")
    assert found.as_expected, found.failures
    assert found.simulator.largest < 1  # steps: sums in another order tip a code that lies on a border
    assert "not a simulator of integers" in found.notes[0]


def test_the_preset_for_finn_writes_zero_points_of_0_and_true_widths(quantized: Quantized, tmp_path: Path) -> None:
    result = quantized("ResNet", 3, 4, **SYMMETRIC)
    path = brecq.export(result, tmp_path / "m.onnx", "qonnx", preset="finn").path
    graph = onnx.load(path).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    quants = [node for node in graph.node if node.op_type == "Quant"]
    assert all(node.domain == "qonnx.custom_op.general" for node in quants)
    assert not any(constants[node.input[2]].any() for node in quants)
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    found = []
    for node in quants:
        bits = int(constants[node.input[3]])
        attributes = {a.name: a.i for a in node.attribute}
        kind = "weight" if node.input[0] in constants else made_by.get(node.input[0], "input")
        found.append((kind, bits, attributes["signed"], attributes["narrow"]))
    assert found.count(("weight", 3, 1, 0)) == 7
    assert found.count(("weight", 8, 1, 1)) == 2  # first and last layer: -127 to 127
    assert ("input", 8, 1, 0) in found  # codes around 128 are signed ones around 0
    assert found.count(("Relu", 4, 0, 0)) >= 5
    assert ("Relu", 8, 0, 0) in found  # what the first layer puts out
    assert len(found) == len(quants) == 18
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_what_finn_does_not_take_is_refused_before_writing(quantized: Quantized, tmp_path: Path) -> None:
    result = quantized("ResNet", 4, 8)
    message = r"7 weights \(layer1.*--weight-scheme symmetric and 1 activations \(x\) with --activation-scheme symm"
    with pytest.raises(ExportError, match=message):
        brecq.export(result, tmp_path / "m.onnx", "qonnx", preset="finn")
    weight_only = quantized("ResNet", 4, 32, weight_scheme="symmetric")
    with pytest.raises(ExportError, match="--activation-bits"):
        brecq.export(weight_only, tmp_path / "m.onnx", "qonnx", preset="finn")
    with pytest.raises(ConfigError, match="'fin'; choose one of any, finn"):
        brecq.export(result, tmp_path / "m.onnx", "qonnx", preset="fin")
    with pytest.raises(ConfigError, match="batch is 0"):
        brecq.export(result, tmp_path / "m.onnx", "qonnx", batch=0)
    assert not list(tmp_path.iterdir())


class PooledTwice(nn.Module):
    """Operators of one kind in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)) - self.conv(2 * x).relu().mean((2, 3)))


def test_names_of_nodes_are_unique(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    result = brecq.quantize(PooledTwice(), torch.randn(64, 3, 6, 6), brecq.QuantConfig(4, 8, method="rtn"))
    brecq.export(result, tmp_path / "model.onnx", "qonnx")
    names = [node.name for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
