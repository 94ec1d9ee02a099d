"""`brecq targets` and `brecq check`: tables of runtimes, and what they make of a model before any work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import Result

import brecq
from brecq import QuantConfig
from brecq.targets import names

Invoke = Callable[..., Result]


def test_targets_are_listed_and_shown(invoke: Invoke) -> None:
    listed = invoke("targets")
    assert listed.exit_code == 0, listed.output
    assert all(name in listed.stdout for name in names())
    shown = " ".join(invoke("targets", "tensorrt").stdout.split())
    assert "signed, zero point 0" in shown
    assert "add (residual)" in shown
    assert [each["name"] for each in json.loads(invoke("targets", "--json").stdout)] == names()
    wrong = invoke("targets", "tpu")
    assert wrong.exit_code == 2
    assert "choose one of cmsis-nn" in " ".join(wrong.stderr.split())


def test_a_model_is_checked_before_any_work(invoke: Invoke, network_file: Path) -> None:
    arguments = ("check", f"{network_file}:plain", "-w", "4", "--target")
    found = invoke(*arguments, "onnxruntime")
    assert found.exit_code == 0, found.output
    text = " ".join(found.stdout.split())
    assert re.search(r"4 conv2d 4 bit 8 bit 4 bit int8", text)
    assert "in float nothing without a weight" in text
    assert "0.0 % of MACs in float" in text
    refused = invoke(*arguments, "tensorrt", "-a", "4")
    assert refused.exit_code == 2
    assert "tensorrt computes no layer of this network at 4/4 bits" in " ".join(refused.stderr.split())
    unwritten = invoke(*arguments, "cmsis-nn", "--set", "*", "float")
    assert unwritten.exit_code == 1, unwritten.output
    assert "refused" in unwritten.stdout
    missing = invoke("check", f"{network_file}:plain")
    assert missing.exit_code == 2
    assert "--target is missing" in missing.stderr


@pytest.mark.parametrize(
    ("name", "target", "floats", "kernels"),
    [
        ("ResNet", "onnxruntime", [], {"int8"}),
        ("ResNet", "tensorrt", [], {"int8"}),  # the additions are parts of the kernels before them
        ("UNet", "executorch", [], {"int8", "float"}),
        ("SENet", "onnxruntime", ["silu", "sigmoid", "mul", "sigmoid"], {"int8"}),
        ("ViT", "onnxruntime", ["add", "layer_norm", "gelu"], {"int8"}),
    ],
)
def test_what_stays_float(networks: ModuleType, name: str, target: str, floats: list[str], kernels: set[str]) -> None:
    model = networks.build(getattr(networks, name))
    found = brecq.check(model, networks.inputs(model, 2), QuantConfig(4, 8, target=target), rehearse=False)
    assert {each.op for each in found.floats} >= set(floats)
    assert bool(found.floats) == bool(floats)
    assert {layer.computes for layer in found.layers} == kernels
    assert (found.float_macs > 0) == ("float" in kernels)
    assert found.weight_bytes == -(-sum(layer.parameters * layer.stored for layer in found.layers) // 8)


def test_bits_in_the_file_are_the_targets(networks: ModuleType) -> None:
    model = networks.build(networks.MobileNet)
    inputs = networks.inputs(model, 2)
    found = {
        target: brecq.check(model, inputs, QuantConfig(3, 8, target=target), rehearse=False)
        for target in ("litert", "openvino")
    }
    stored = {
        target: {(each.kind, each.weights, each.stored) for each in legality.layers}
        for target, legality in found.items()
    }
    assert {("conv2d", 3, 4), ("depthwise_conv2d", 3, 4), ("linear", 8, 8)} <= stored["litert"]
    assert ("conv2d", 3, 3) in stored["openvino"]
