"""Encodings for Qualcomm's tools: in AIMET's form, and applied again they give the numbers that were measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import brecq
from brecq import QuantResult
from brecq.errors import ExportError

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
encodings = pytest.importorskip("brecq.deploy.qualcomm.encodings", reason="needs the extra onnx")

Quantized = Callable[..., QuantResult]
KEYS = {"name", "enc_type", "dtype", "bw", "is_sym", "scale", "offset"}  # what AIMET's exporter writes


@pytest.mark.parametrize(("name", "weights", "activations"), [("ResNet", 3, 4), ("FPN", 3, 4), ("Shuffled", 3, 8)])
def test_encodings_applied_again_give_equal_numbers(
    networks: ModuleType, quantized: Quantized, tmp_path: Path, name: str, weights: int, activations: int
) -> None:
    result = quantized(name, weights, activations, target="qualcomm")
    exported = brecq.export(result, tmp_path / "m.onnx", "qualcomm")
    assert {file.name for file in exported.files} == {"m.onnx", "m.encodings"}
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "m.encodings"}
    (x,) = networks.inputs(networks.build(getattr(networks, name)), 8, seed=5)
    found = brecq.verify(result, tmp_path / "m.onnx", x, format="qualcomm", bisect=True)
    assert found.failures == ()
    assert len(found.tensors) >= 8
    assert sum(tensor.differing for tensor in found.tensors) <= 2  # sums in float
    assert all(tensor.border < 1e-4 for tensor in found.tensors)
    assert found.followed is not None
    assert found.followed.largest < 1e-3
    assert found.quantized.mean < 0.1
    written = json.loads((tmp_path / "m.encodings").read_text())
    assert written["version"] == "1.0.0"
    for each in (*written["activation_encodings"], *written["param_encodings"]):
        assert each.keys() == KEYS
        assert each["dtype"] == "INT"
        assert len(each["scale"]) == len(each["offset"])
        assert (each["enc_type"] == "PER_TENSOR") == (len(each["scale"]) == 1)
        assert all(isinstance(offset, int) for offset in each["offset"])
    weights_ = [each for each in written["param_encodings"] if each["name"].endswith("weight")]
    assert {each["bw"] for each in weights_} == {weights, 8}
    assert all(each["is_sym"] and set(each["offset"]) == {-(2 ** (each["bw"] - 1))} for each in weights_)
    model = onnx.load(tmp_path / "m.onnx")
    tensors = {name for node in model.graph.node for name in node.output} | {v.name for v in model.graph.input}
    assert {each["name"] for each in written["activation_encodings"]} <= tensors
    assert not {node.op_type for node in model.graph.node} & {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("scheme", ["auto", "signed"])
def test_sixteen_bits(networks: ModuleType, quantized: Quantized, tmp_path: Path, scheme: str) -> None:
    """A step is 1 / 65 535 of a range there: what float sums leave of a border between two codes tips some."""
    result = quantized("MobileNet", 4, 16, target="qualcomm", activation_scheme=scheme)
    brecq.export(result, tmp_path / "m.onnx", "qualcomm")
    (x,) = networks.inputs(networks.build(networks.MobileNet), 8, seed=5)
    found = brecq.verify(result, tmp_path / "m.onnx", x, format="qualcomm", bisect=True)
    assert found.failures == ()
    assert all(tensor.differing < 0.01 * tensor.count and tensor.largest <= 1 for tensor in found.tensors)
    assert found.quantized.mean < 0.01
    written = json.loads((tmp_path / "m.encodings").read_text())
    assert {each["bw"] for each in written["activation_encodings"]} == {16}
    assert all(each["is_sym"] for each in written["activation_encodings"]) == (scheme == "signed")
    for each in written["activation_encodings"]:
        assert -65535 <= each["offset"][0] <= 0


@pytest.mark.parametrize("activations", [6, 16])
def test_constants_among_activations_have_encodings(
    networks: ModuleType, quantized: Quantized, tmp_path: Path, activations: int
) -> None:
    """Their codes count from 0 on, other than those of weights, and at 16 bits they were taken for biases."""
    result = quantized("Queries", 4, activations, target="qualcomm", first_last=None)
    brecq.export(result, tmp_path / "m.onnx", "qualcomm")
    (x,) = networks.inputs(networks.build(networks.Queries), 8, seed=5)
    found = brecq.verify(result, tmp_path / "m.onnx", x, format="qualcomm", bisect=True)
    assert found.failures == ()
    assert found.quantized.mean < 0.01
    written = json.loads((tmp_path / "m.encodings").read_text())
    (own,) = [each for each in written["param_encodings"] if each["name"] == "queries"]
    assert own["bw"] == activations


def test_signed_codes_of_few_bits_are_applied_again(
    networks: ModuleType, quantized: Quantized, tmp_path: Path
) -> None:
    """Encodings count codes from 0 on, the simulator signed ones from the lowest on: 128 apart they were."""
    result = quantized("ResNet", 4, 5, target="qualcomm", activation_scheme="signed")
    brecq.export(result, tmp_path / "m.onnx", "qualcomm")
    (x,) = networks.inputs(networks.build(networks.ResNet), 8, seed=5)
    found = brecq.verify(result, tmp_path / "m.onnx", x, format="qualcomm", bisect=True)
    assert found.failures == ()
    assert sum(tensor.differing for tensor in found.tensors) <= 2


def test_what_is_split_shuffled_enlarged_and_joined_has_one_grid(quantized: Quantized, tmp_path: Path) -> None:
    """Qualcomm's tools quantize a tensor without an encoding of its own by ranges of their own."""
    brecq.export(quantized("Shuffled", 3, 8, target="qualcomm"), tmp_path / "m.onnx", "qualcomm")
    grids = {each.name: each for each in encodings.read(tmp_path / "m.encodings").activation_encodings}
    nodes = onnx.load(tmp_path / "m.onnx").graph.node
    moved = [node for node in nodes if node.op_type in {"Split", "Concat", "Reshape", "Transpose", "Resize"}]
    assert len(moved) >= 7
    for node in moved:
        sources = node.input if node.op_type == "Concat" else node.input[:1]
        assert len({(grids[name].scale, grids[name].offset, grids[name].bw) for name in (*sources, *node.output)}) == 1
    clamped = {node.input[0] for node in nodes if node.op_type == "Relu"}
    without = {name for node in nodes for name in node.output} - grids.keys()
    assert without == clamped  # the kernel of a convolution clamps


def test_weights_in_the_file_are_on_their_grids(quantized: Quantized, tmp_path: Path) -> None:
    """Of any scheme: a zero point is an offset of its own."""
    brecq.export(quantized("ConcatNet", 4, 8), tmp_path / "m.onnx", "qualcomm")
    read = encodings.read(tmp_path / "m.encodings")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert any(len(set(each.offset)) > 1 for each in read.param_encodings)
    for each in read.param_encodings:
        value = stored[each.name]
        axis = 1 if each.name.endswith("_turned") else 0
        assert np.array_equal(each.values(each.codes(value, axis), axis), value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0.6.1"}, "version '0.6.1'"),
        ({"activation_encodings": [{"name": "x"}]}, "lacks 'enc_type'"),
        ({"param_encodings": []}, ""),
    ],
)
def test_what_is_no_file_of_encodings_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    whole = {"version": "1.0.0", "activation_encodings": [], "param_encodings": [], **change}
    (tmp_path / "m.encodings").write_text(json.dumps(whole))
    if not message:
        assert encodings.read(tmp_path / "m.encodings").param_encodings == ()
        return
    with pytest.raises(ExportError, match=message):
        encodings.read(tmp_path / "m.encodings")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": (0.1, 0.2)}, "2 scales, 1 offsets"),
        ({"scale": (0.0,)}, "not positive"),
        ({"offset": (-3,)}, "not the middle"),
        ({"dtype": "FLOAT"}, "FLOAT 8; not supported"),
    ],
)
def test_an_encoding_that_contradicts_itself_is_refused(change: dict[str, object], message: str) -> None:
    good = {"name": "x", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": True}
    good |= {"scale": (0.1,), "offset": (-128,)}
    encodings.Encoding(**good)
    with pytest.raises(ExportError, match=message):
        encodings.Encoding(**(good | change))


def test_a_tensor_that_the_file_lacks_is_named(quantized: Quantized, tmp_path: Path) -> None:
    from brecq.deploy.runtime import open_file

    brecq.export(quantized("ConcatNet", 4, 8), tmp_path / "m.onnx", "qualcomm")
    text = (tmp_path / "m.encodings").read_text()
    (tmp_path / "m.encodings").write_text(text.replace('"name": "x"', '"name": "nothing"'))
    with pytest.raises(ExportError, match="the tensor 'nothing', which the ONNX file lacks"):
        open_file(tmp_path / "m.onnx", "qualcomm")
