"""16-bit activations on the command line: from a check before any work to a file that runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]

NETWORK = """
import torch
from torch import nn

from brecq.data.preprocessing import Preprocessing


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.point(torch.relu(self.depthwise(x))))
        return self.head(nn.functional.max_pool2d(x, 2).mean((2, 3)))


def build():
    torch.manual_seed(7)
    return Network().eval(), Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3, size=(16, 16), resize=16)
"""


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sixteen") / "network.py"
    path.write_text(NETWORK)
    return f"{path}:build"


@pytest.mark.parametrize(
    ("target", "package", "format", "name"),
    [("litert", "ai_edge_litert", "tflite", "m.tflite"), ("qualcomm", "onnxruntime", "qualcomm", "m.onnx")],
)
def test_from_a_network_to_a_file_that_runs(
    invoke: Invoke, network: str, images: Path, tmp_path: Path, target: str, package: str, format: str, name: str
) -> None:
    pytest.importorskip(package)
    out, file = tmp_path / "out", tmp_path / name
    quick = ("--calib-size", "16", "--steps", "8", "--batch-size", "4", "-w", "4", "-a", "16")
    made = invoke("quantize", network, "--calib", images, "--target", target, *quick, "-o", out)
    assert made.exit_code == 0, made.output
    assert "16 bit" in made.stdout
    exported = invoke("export", out, "--format", format, "-o", file)
    assert exported.exit_code == 0, exported.output
    found = invoke(
        "verify", out, file, "--data", images, "--bisect", "--format", {"litert": "tflite"}.get(target, target)
    )
    assert found.exit_code == 0, found.output
    timed = invoke("benchmark", out, file, "--format", format, "--runs", "2", "--batch", "1")
    assert (timed.exit_code == 0) == (target == "litert"), timed.output  # the other stands for another machine
    others = invoke("export", out, "-o", tmp_path / "other.xml")
    assert others.exit_code == 2
    assert "takes activations of at most 8 bits, and this result has some of 16" in plain(others.stderr)


def test_targets_without_16_bits_say_which_have_them(
    invoke: Invoke, network: str, images: Path, tmp_path: Path
) -> None:
    for target in ("cmsis-nn", "onnxruntime", "openvino", "tensorrt", "executorch"):
        checked = invoke("check", network, "--target", target, "-a", "16")
        assert checked.exit_code == 2, checked.output
        text = plain(checked.stderr)
        assert f"{target} computes no layer of this network at 4/16 bits" in text
        assert "targets with 16-bit activations: litert, qualcomm" in text
    refused = invoke(
        "quantize", network, "--calib", images, "--target", "cmsis-nn", "-a", "16", "-o", tmp_path / "out"
    )
    assert refused.exit_code == 2
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_check_shows_its_kernels(invoke: Invoke, network: str) -> None:
    found = invoke("check", network, "--target", "litert", "-w", "4", "-a", "16")
    assert found.exit_code == 0, found.output
    text = plain(found.stdout)
    assert "1 depthwise_conv2d (depthwise) 4 bit 16 bit 8 bit 16x8" in text
    assert "1 conv2d (point) 4 bit 16 bit 4 bit 16x8" in text
    assert "in float nothing without a weight" in text
    shown = plain(invoke("targets", "litert").stdout)
    assert "16-bit activations" in shown


def test_weights_have_no_16_bits_and_others_neither(invoke: Invoke, network: str) -> None:
    for arguments, text in (
        (("-w", "16"), "is 16; choose 2 to 8 bits, or 32 for floating point; 16 is for activations"),
        (("-a", "12"), "is 12; choose 2 to 8 bits, 16, or 32 for floating point"),
        (("--first-last", "16"), "16 is for activations"),
        (("-a", "16", "--qdrop", "0.3"), "would do nothing: rounding activations to 16 bits changes next to nothing"),
    ):
        refused = invoke("quantize", network, "--calib", "nowhere", "-o", "nowhere", *arguments)
        assert refused.exit_code == 2
        assert text in plain(refused.stderr), refused.stderr
