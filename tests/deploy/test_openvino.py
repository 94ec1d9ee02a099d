"""OpenVINO: integer kernels in every layer, true bit-widths on disk, outputs within a few steps of the program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import brecq
from brecq import QuantResult
from brecq.deploy.complete import complete
from brecq.deploy.formats import Exported
from brecq.errors import ConfigError, ExportError

Quantized = Callable[..., QuantResult]

pytest.importorskip("openvino", reason="needs openvino: pip install 'brecq[openvino]'")


def run(networks: ModuleType, name: str, exported: Exported) -> tuple[np.ndarray, torch.Tensor, dict[str, str]]:
    """Output, input, and the kernels of the layers."""
    from brecq.deploy.openvino import runtime

    x = networks.inputs(networks.build(getattr(networks, name)), 3, seed=5)[0]
    session = runtime.load(exported.path)
    return session(x.numpy())[0], x, session.layer_kernels()


@pytest.mark.parametrize(
    ("name", "weights", "activations", "layers"),
    [
        ("ResNet", 4, 8, 9),  # asymmetric weights, as is the default below 8 bits
        ("MobileNet", 2, 4, 11),
        ("ConcatNet", 3, 8, 5),
        ("ViT", 5, 8, 10),
    ],
)
def test_every_layer_runs_on_integers_and_agrees_with_the_program(
    networks: ModuleType, quantized: Quantized, tmp_path: Path, name: str, weights: int, activations: int, layers: int
) -> None:
    from brecq.deploy.openvino import runtime

    result = quantized(name, weights, activations)
    exported = brecq.export(result, tmp_path / "m.xml", "openvino")
    output, x, kernels = run(networks, name, exported)
    assert len(kernels) == layers
    assert all(map(runtime.is_integer, kernels.values())), kernels
    with torch.no_grad():
        expected = complete(result).graph(x).numpy()
    steps = np.abs(output - expected).max() / (np.ptp(expected) / 2**activations)
    assert steps < 3  # OpenVINO rounds the rescaled accumulator in its own way
    assert np.abs(output - expected).mean() < np.ptp(expected) / 2**activations / 2


@pytest.mark.parametrize(("name", "weights", "activations"), [("CifarResNet", 4, 4), ("ResNet", 3, 8)])
def test_residual_sums_round_what_is_added_first(
    networks: ModuleType, quantized: Quantized, tmp_path: Path, name: str, weights: int, activations: int
) -> None:
    """OpenVINO leaves out the rounding between a convolution and an addition that it makes one kernel of."""
    from brecq.deploy.simulate import simulate

    result = quantized(name, weights, activations, target="openvino")
    exported = brecq.export(result, tmp_path / "m.xml", "openvino")
    output, x, _ = run(networks, name, exported)
    expected = simulate(result)(x).numpy()
    assert np.abs(output - expected).max() < np.ptp(expected) / 255 / 100


@pytest.mark.parametrize("pack", ["planes", "int8"])
@pytest.mark.parametrize(
    ("name", "weights", "activations", "layers"),
    [("MobileNet", 3, 8, 11), ("SENet", 4, 8, 6), ("ViT", 4, 8, 10), ("ViT", 2, 8, 10), ("ConcatNet", 5, 8, 5)],
)
def test_onnx_files_are_read_right(
    networks: ModuleType,
    quantized: Quantized,
    tmp_path: Path,
    name: str,
    weights: int,
    activations: int,
    layers: int,
    pack: str,
) -> None:
    """Users give OpenVINO the ONNX file itself: every layer runs on integers and computes what ONNX Runtime does."""
    from brecq.deploy.onnx import session
    from brecq.deploy.openvino import runtime

    exported = brecq.export(quantized(name, weights, activations), tmp_path / "m.onnx", pack=pack)
    x = networks.inputs(networks.build(getattr(networks, name)), 3, seed=5)[0].numpy()
    run = runtime.load(exported.path)
    kernels = run.layer_kernels()
    assert len(kernels) == layers
    assert all(map(runtime.is_integer, kernels.values())), kernels
    (found,), (expected,) = run(x), session.load(exported.path)(x)
    assert 10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum().clip(1e-30)) > 30


@pytest.mark.parametrize("bits", [2, 3])
def test_weights_take_their_true_bits_on_disk(quantized: Quantized, tmp_path: Path, bits: int) -> None:
    result = quantized("UNet", bits, 8)
    exported = brecq.export(result, tmp_path / "m.xml", "openvino")
    assert {file.name for file in exported.files} == {"m.xml", "m.bin"} == {file.name for file in tmp_path.iterdir()}
    assert (tmp_path / "m.bin").stat().st_size < result.weight_bytes() * 1.05
    assert exported.size == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_weight_only_results_keep_packed_weights_and_float_kernels(
    networks: ModuleType, quantized: Quantized, tmp_path: Path
) -> None:
    from brecq.deploy.openvino import runtime

    result = quantized("ViT", 4, 32)
    exported = brecq.export(result, tmp_path / "m.xml", "openvino")
    output, x, kernels = run(networks, "ViT", exported)
    assert runtime.load(exported.path).digest == result.digest()
    assert not any(map(runtime.is_integer, kernels.values()))
    with torch.no_grad():
        expected = result.model(x).numpy()
    np.testing.assert_allclose(output, expected, atol=1e-5 * np.abs(expected).max())
    assert (tmp_path / "m.bin").stat().st_size < result.weight_bytes() * 1.05


def test_what_openvino_cannot_run_is_refused_before_writing(quantized: Quantized, tmp_path: Path) -> None:
    asymmetric = quantized("ResNet", 8, 8, weight_scheme="asymmetric")
    with pytest.raises(ExportError, match=r"and 6 more are asymmetric at 8 bits.*--weight-scheme"):
        brecq.export(asymmetric, tmp_path / "m.xml", "openvino")
    with pytest.raises(ConfigError, match=r"give the ending \.xml, or the format onnx"):
        brecq.export(asymmetric, tmp_path / "m.onnx", "openvino")
    assert not list(tmp_path.iterdir())
