"""Single layers as ONNX models: in float, and quantized so that ONNX Runtime takes its integer kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from brecq.errors import HardwareError
from brecq.precision.layers import Layer

OPSET, IR_VERSION = 17, 8  # read by every ONNX Runtime from 1.12 on
_SCALE = 0.02


def layer_model(layer: Layer, *, quantized: bool) -> ModelProto:
    """A model of one layer with random weights, for one sample: float32 in and out, or uint8 in and out.

    Quantized ones hold int8 weights with a scale per channel and an int32 bias, between DequantizeLinear and
    QuantizeLinear, which ONNX Runtime fuses into QLinearConv, QLinearMatMul or QGemm. Where it has no integer kernel
    (transposed convolutions) it computes in float between them.

    Raises:
        HardwareError: the layer is of a kind that has no ONNX operator here.
    """
    weight_shape = _weight_shape(layer)
    generator = np.random.default_rng(0)
    kind = "u8" if quantized else "f32"
    dtype = TensorProto.UINT8 if quantized else TensorProto.FLOAT
    value = helper.make_tensor_value_info
    inputs = [value("x", dtype, [1, *layer.input_shape])]
    outputs = [value("y", dtype, [1, *layer.output_shape])]
    channels = layer.channels * layer.groups
    axis = 1 if layer.kind.startswith("conv_transpose") or _matmul(layer) else 0
    nodes, constants = [], []

    def constant(name: str, values: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    if kind == "u8":
        codes = generator.integers(-127, 128, weight_shape, dtype=np.int8)
        scales = np.full(weight_shape[axis], _SCALE, np.float32)
        step, zero = constant("s", np.float32(_SCALE)), constant("z", np.uint8(128))
        nodes.append(helper.make_node("DequantizeLinear", ["x", step, zero], ["xf"]))
        names = [constant("wq", codes), constant("ws", scales), constant("wz", np.zeros(len(scales), np.int8))]
        nodes.append(helper.make_node("DequantizeLinear", names, ["w"], axis=axis))
        names = [
            constant("bq", np.ones(channels, np.int32)),
            constant("bs", np.full(channels, _SCALE * _SCALE, np.float32)),
            constant("bz", np.zeros(channels, np.int32)),
        ]
        nodes.append(helper.make_node("DequantizeLinear", names, ["b"], axis=0))
        nodes += _operators(layer, "xf", "w", "b", "yf")
        nodes.append(helper.make_node("QuantizeLinear", ["yf", step, zero], ["y"]))
    else:
        constant("w", generator.standard_normal(weight_shape).astype(np.float32))
        constant("b", np.zeros(channels, np.float32))
        nodes += _operators(layer, "x", "w", "b", "y")
    graph = helper.make_graph(nodes, "layer", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    checker.check_model(model)
    return model


def _matmul(layer: Layer) -> bool:
    """Linear layers on more than a vector a sample (tokens) are a MatMul and an Add."""
    return layer.kind == "linear" and len(layer.input_shape) > 1


def _weight_shape(layer: Layer) -> tuple[int, ...]:
    return layer.weight_shape[::-1] if _matmul(layer) else layer.weight_shape


def _operators(layer: Layer, x: str, w: str, b: str, y: str) -> list[Any]:
    if layer.kind == "linear" and not _matmul(layer):
        return [helper.make_node("Gemm", [x, w, b], [y], transB=1)]
    if layer.kind == "linear":
        return [helper.make_node("MatMul", [x, w], ["product"]), helper.make_node("Add", ["product", b], [y])]
    attributes: dict[str, Any] = {
        "kernel_shape": layer.kernel, "strides": layer.stride, "dilations": layer.dilation, "group": layer.groups,
    }  # fmt: skip
    if layer.kind.startswith("conv_transpose"):
        return [helper.make_node("ConvTranspose", [x, w, b], [y], output_shape=layer.output_shape[1:], **attributes)]
    if layer.kind in ("conv1d", "conv2d"):
        return [helper.make_node("Conv", [x, w, b], [y], pads=_pads(layer), **attributes)]
    raise HardwareError(f"{layer.name} is a {layer.kind}, which cannot be profiled")


def _pads(layer: Layer) -> list[int]:
    """Padding that gives the output its size; how it is split between the ends does not matter for time."""
    begins, ends = [], []
    for size, out, kernel, stride, dilation in zip(
        layer.input_shape[1:], layer.output_shape[1:], layer.kernel, layer.stride, layer.dilation, strict=True
    ):
        total = max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - size)
        begins.append(math.floor(total / 2))
        ends.append(math.ceil(total / 2))
    return begins + ends
