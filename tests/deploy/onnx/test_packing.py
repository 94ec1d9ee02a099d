"""Weights survive packing at every width, take their true size, and unpack in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ir = pytest.importorskip("onnx_ir", reason="needs the extra onnx")
onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

from brecq.deploy.onnx import packing  # noqa: E402
from brecq.deploy.onnx.build import Builder  # noqa: E402
from brecq.deploy.onnx.names import unique_names  # noqa: E402
from brecq.deploy.onnx.session import Session  # noqa: E402


def unpack_plane(packed: np.ndarray, width: int, count: int) -> np.ndarray:
    """Bit by bit, as the format says: the first code in the lowest bits."""
    return np.array([(packed[i * width // 8] >> (i * width % 8)) & (2**width - 1) for i in range(count)], np.uint8)


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_a_plane_is_dense_and_comes_back(width: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**width, count).astype(np.uint8)
    packed = packing.pack_plane(codes, width)
    assert packed.dtype == np.uint8
    assert packed.size == -(-count * width // 8)
    assert np.array_equal(unpack_plane(packed, width, count), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_planes_add_up_to_the_width(bits: int) -> None:
    assert sum(packing.plane_widths(bits)) == bits
    assert all(width in (1, 2, 4, 8) for width in packing.plane_widths(bits))


def unpacking_model(codes: np.ndarray, zero_point: np.ndarray, bits: int, pack: packing.Pack) -> Any:
    """A model that returns the unpacked weight plus its input of 0."""
    int8 = ir.DataType.INT8
    x = ir.Value(name="x", type=ir.TensorType(int8), shape=ir.Shape([]))
    anchor = ir.node("Identity", [x], name="anchor")
    graph = ir.Graph([x], [], nodes=[anchor], opset_imports={"": packing.requirements(pack, {bits})[0]}, name="g")
    weight = packing.unpacked(Builder(graph), anchor, "w", codes, zero_point, -(2 ** (bits - 1)), bits, pack)
    out = ir.node("Identity", [weight], name="out")
    graph.append(out)
    out.outputs[0].name, out.outputs[0].dtype = "y", int8
    out.outputs[0].shape = ir.Shape(codes.shape)
    graph.outputs.append(out.outputs[0])
    graph.sort()
    unique_names(graph)
    return ir.to_proto(ir.Model(graph, ir_version=packing.requirements(pack, {bits})[1]))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 7),
    st.sampled_from(["planes", "cast", "int8"]),
    st.integers(1, 9),
    st.integers(1, 11),
    st.integers(0, 99),
)
def test_the_runtime_unpacks_what_was_packed(
    bits: int, pack: packing.Pack, channels: int, depth: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = generator.integers(low, high, (channels, depth)).astype(np.int8)
    zero_point = generator.integers(low, high, (channels, 1))
    model = unpacking_model(codes, zero_point, bits, pack)
    onnx.checker.check_model(model, full_check=True)
    (found,) = Session(model.SerializeToString())(np.zeros((), np.int8))
    assert np.array_equal(found, codes - zero_point)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_planes_take_their_bits(bits: int) -> None:
    codes = np.zeros((64, 640), np.int8)
    model = unpacking_model(codes, np.zeros((64, 1), np.int64), bits, "planes")
    stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert codes.size * bits / 8 <= stored < codes.size * bits / 8 + 64 + 200  # a byte a channel, a few shapes


def test_what_each_form_needs() -> None:
    assert packing.requirements("planes", {2, 3, 8}) == (18, 8)
    assert packing.requirements("cast", {8}) == (18, 8)
    assert packing.requirements("cast", {3, 8}) == (21, 10)
    assert packing.requirements("native", {2, 4}) == (25, 13)
    assert packing.carrier_bits(3) == 4
    assert packing.carrier_bits(5) == 8
