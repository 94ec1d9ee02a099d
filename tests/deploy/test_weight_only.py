"""Weight-only results in ONNX Runtime: linear layers become MatMulNBits, convolution weights are packed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import brecq
from brecq import LayerRule, QuantConfig, QuantResult

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'brecq[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'brecq[onnx]'")

LINEAR = 9  # of the vision transformer


Case = Callable[..., tuple[QuantResult, np.ndarray]]


@pytest.fixture(scope="session")
def weight_only(networks: ModuleType, quantized: Callable[..., QuantResult]) -> Case:
    """`weight_only("ViT", 4)`: a network with quantized weights alone, and inputs."""

    def get(name: str, weights: int, **config: Any) -> tuple[QuantResult, np.ndarray]:
        x = networks.inputs(networks.build(getattr(networks, name)), 3, seed=5)[0]
        return quantized(name, weights, 32, **config), x.numpy()

    return get


def run(path: Path, x: np.ndarray, level: str = "1") -> tuple[np.ndarray, Any]:
    """Output, and the graph as ONNX Runtime optimized it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    output = session.run(None, {session.get_inputs()[0].name: x})[0]
    return output, onnx.load(options.optimized_model_filepath).graph


def widths(graph: Any) -> Counter[int]:
    return Counter(a.i for n in graph.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "bits")


@pytest.mark.parametrize(
    ("bits", "pack", "scheme", "kernels"),
    [
        (4, "cast", "auto", {4: 8, 8: 1}),  # the head keeps 8 bits
        (3, "planes", "auto", {8: 9}),
        (2, "cast", "symmetric", {2: 8, 8: 1}),
    ],
)
def test_every_linear_layer_becomes_matmulnbits(
    weight_only: Case, tmp_path: Path, bits: int, pack: str, scheme: str, kernels: dict[int, int]
) -> None:
    result, x = weight_only("ViT", bits, weight_scheme=scheme)
    exported = brecq.export(result, tmp_path / "m.onnx", pack=pack)
    output, graph = run(exported.path, x)
    assert widths(graph) == kernels
    with torch.no_grad():
        expected = result.model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(output, expected, atol=2e-6 * np.abs(expected).max())
    assert any(f"{LINEAR} linear layers" in note and "accuracy_level" in note for note in exported.notes)


def test_the_default_accuracy_level_rounds_activations(weight_only: Case, tmp_path: Path) -> None:
    """Why the note is there: should ONNX Runtime change its default, the documentation must change."""
    result, x = weight_only("ViT", 4)
    path = brecq.export(result, tmp_path / "m.onnx").path
    exact, _ = run(path, x)
    rounded, _ = run(path, x, "4")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    default = session.run(None, {session.get_inputs()[0].name: x})[0]
    np.testing.assert_array_equal(default, rounded)
    assert np.abs(default - exact).max() > 1e-4 * np.abs(exact).max()


@pytest.mark.parametrize("bits", [3])
def test_convolution_weights_are_packed_and_run_in_float(
    networks: ModuleType, weight_only: Case, tmp_path: Path, bits: int
) -> None:
    result, x = weight_only("UNet", bits)
    exported = brecq.export(result, tmp_path / "m.onnx")
    output, graph = run(exported.path, x)
    with torch.no_grad():
        expected = result.model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(output, expected, atol=2e-6 * np.abs(expected).max())
    unpacking = {"BitShift", "BitwiseAnd", "BitwiseOr", "Cast", "Mul", "Sub", "DequantizeLinear"}
    assert not unpacking & {n.op_type for n in graph.node}, "all of it is folded when the file is loaded"
    packed = sum(len(t.raw_data) for t in onnx.load(exported.path).graph.initializer if t.data_type == 2)
    codes = sum(w.numel() * (8 if w.numel() in (216, 40) else bits) for w in _weights(networks)) / 8
    assert packed < codes * 1.05 + 300


def _weights(networks: ModuleType) -> list[torch.Tensor]:
    return [p for p in networks.build(networks.UNet).parameters() if p.dim() == 4]


def test_layers_with_and_without_quantized_inputs_in_one_network(networks: ModuleType, tmp_path: Path) -> None:
    model = networks.build(networks.ViT)
    rules = (LayerRule("blocks.1.*", weights=4, activations=32),)
    config = QuantConfig(weights=4, activations=8, method="rtn", placement="input", rules=rules)
    result = brecq.quantize(model, networks.inputs(model, 8)[0], config)
    x = networks.inputs(model, 3, seed=5)[0]
    exported = brecq.export(result, tmp_path / "m.onnx")
    output, graph = run(exported.path, x.numpy())
    assert widths(graph) == {8: 4}
    with torch.no_grad():
        expected = result.model(x).numpy()
    np.testing.assert_allclose(output, expected, atol=0.02 * np.abs(expected).max())


def test_products_of_two_activations_are_not_counted_as_layers(
    networks: ModuleType, quantized: Callable[..., QuantResult], tmp_path: Path
) -> None:
    """Attention multiplies float probabilities with dequantized values: a MatMul of the same look without a weight."""
    exported = brecq.export(quantized("ViT", 4, 8), tmp_path / "m.onnx")
    _, graph = run(exported.path, networks.inputs(networks.build(networks.ViT), 3, seed=5)[0].numpy())
    assert not widths(graph)
    assert not [note for note in exported.notes if "MatMulNBits" in note]
