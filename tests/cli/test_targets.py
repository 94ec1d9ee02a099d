"""Files for other runtimes from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from brecq.cli import app

Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def saved(network_file: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A result with activations of so many bits."""
    folder = tmp_path_factory.mktemp("targets")

    def get(activations: int) -> Path:
        out = folder / str(activations)
        if not out.exists():
            bits = ("-w", "4", "-a", str(activations), "--weight-scheme", "symmetric", "--method", "rtn")
            arguments = (
                "quantize",
                f"{network_file}:build",
                "--calib",
                images,
                "-o",
                out,
                "--calib-size",
                "16",
                *bits,
            )
            result = CliRunner().invoke(app, [str(argument) for argument in arguments])
            assert result.exit_code == 0, result.output
        return out

    return get


def test_openvino_from_export_to_verify(
    invoke: Invoke, saved: Callable[[int], Path], images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    file = tmp_path / "model.xml"
    exported = invoke("export", saved(8), "--format", "openvino", "-o", file)
    assert exported.exit_code == 0, exported.output
    assert {path.name for path in tmp_path.iterdir()} == {"model.xml", "model.bin"}
    found = invoke("verify", saved(8), file, "--data", images)
    assert found.exit_code == 0, found.output
    text = " ".join(found.stdout.split())
    assert "6 of 6 convolutions and linear layers are integer kernels" in text
    assert "OpenVINO on 24 samples" in text


def test_compressed_tensors_is_a_folder(invoke: Invoke, saved: Callable[[int], Path], tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="needs the extra compressed-tensors")
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "mine"}')
    arguments = ("--format", "compressed-tensors", "-o", tmp_path / "out", "--option", f"model_config={config}")
    refused = invoke("export", saved(8), *arguments)
    assert refused.exit_code == 2
    assert "--activation-bits 32" in " ".join(refused.stderr.split())
    exported = invoke("export", saved(32), *arguments)
    assert exported.exit_code == 0, exported.output
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["model_type"] == "mine"
    assert written["quantization_config"]["format"] == "pack-quantized"


def test_the_preset_for_finn(invoke: Invoke, saved: Callable[[int], Path], tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra onnx")
    arguments = ("-f", "qonnx", "-o", tmp_path / "m.onnx", "--option")
    wrong = invoke("export", saved(8), *arguments, "preset=fin")
    assert wrong.exit_code == 2
    assert "give any or finn" in " ".join(wrong.stderr.split())
    weight_only = invoke("export", saved(32), *arguments, "preset=finn")
    assert weight_only.exit_code == 2
    assert "quantize with --activation-bits 8" in " ".join(weight_only.stderr.split())
    assert not list(tmp_path.iterdir())
