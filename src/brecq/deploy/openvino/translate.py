"""From the neutral ONNX graph to an OpenVINO model: what brecq's own operators become.

Activations become FakeQuantize with 256 levels, behind a Clamp where the codes have a narrower range: clamping at
values of the grid and then rounding gives the same codes as clamping the codes, and the int8 kernels know 256 levels
only.

Weights become `Constant(u2|u3|u4|u6) → Convert(i8) → Subtract(zero point, i8) → Convert(f32) → Multiply(scale)`.
OpenVINO folds the i8 part when it loads the file, so that what reaches a kernel is an int8 weight without zero point,
for asymmetric weights too. (Subtracted in float, where OpenVINO's own importers do it, or at the narrow type, a zero
point leaves the layer with a float kernel.) A weight whose layer reads float activations keeps the form that OpenVINO
decompresses inside its matrix kernels: `Convert(f32) → Subtract(zero point, f32) → Multiply`.

Where what a convolution writes is quantized, added to and quantized again, OpenVINO's CPU plugin makes one kernel of
it all, and leaves out the rounding of the first quantizer if nothing stands between it and the convolution. `PRelu`
with slope 1 stands there: it changes no number and becomes a part of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import openvino
import openvino.opset13 as ops
from openvino.frontend.onnx import ConversionExtension

from brecq.deploy.onnx.neutral import DOMAIN

Outputs = list[Any]

_CARRIERS = {2: openvino.Type.u2, 3: openvino.Type.u3, 4: openvino.Type.u4, 6: openvino.Type.u6}
"""Types that hold codes of so many bits; 5 bits go into 6, 7 and 8 into i8."""

CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")


def translate(model: ir.Model) -> openvino.Model:
    """The OpenVINO model of a neutral graph, with the names of its inputs and outputs."""
    separate_biases(model.graph)
    reads_codes = any(node.op_type == "Quantize" and node.domain == DOMAIN for node in model.graph)
    core = openvino.Core()
    translators: dict[str, Callable[[Any], Outputs]] = {
        "Quantize": _quantize,
        "Dequantize": _dequantize,
        "DequantizeConstant": _weight if reads_codes else _float_layer_weight,
    }
    for name, translator in translators.items():
        core.add_extension(ConversionExtension(name, DOMAIN, translator))
    found = core.read_model(ir.to_proto(model).SerializeToString())
    keep_rounding(found)
    return found


def keep_rounding(model: openvino.Model) -> None:
    """Put a PRelu of slope 1 between each convolution and a quantizer behind it whose values are added to others."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize" or not any(map(_adds, node.output(0).get_target_inputs())):
            continue
        value = node.input_value(0)
        if _maker(value).get_type_name() in CONVOLUTIONS:
            node.input(0).replace_source_output(ops.prelu(value, ops.constant(np.float32(1))).output(0))


def _adds(reader: Any) -> bool:
    node = reader.get_node()
    return node.get_type_name() == "Add" and not any(_is_constant(value) for value in node.input_values())


def _is_constant(value: Any) -> bool:
    return bool(value.get_node().get_type_name() == "Constant")


def _maker(value: Any) -> Any:
    """What computes a value, seen through biases and clamps."""
    node = value.get_node()
    while node.get_type_name() in ("Clamp", "Relu") or (
        node.get_type_name() == "Add" and _is_constant(node.input_value(1))
    ):
        node = node.input_value(0).get_node()
    return node


def separate_biases(graph: ir.Graph) -> None:
    """Add biases behind their convolutions, as OpenVINO has it; its importer needs ten operators to do so."""
    for node in list(graph):
        bias = node.inputs[2] if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 2 else None
        rank = None if node.outputs[0].shape is None else len(node.outputs[0].shape)
        if bias is None or rank is None:
            continue
        dequantize = bias.producer()
        constant = bias if dequantize is None else dequantize.inputs[0]
        if constant is None or constant.const_value is None:
            continue
        value = constant.const_value.numpy()
        if dequantize is not None:
            scale = dequantize.inputs[1]
            assert scale is not None
            assert scale.const_value is not None
            value = value.astype(np.float32) * scale.const_value.numpy()
        out = node.outputs[0]
        addend = _initializer(graph, f"{out.name}_bias", value.reshape(1, -1, *[1] * (rank - 2)))
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        product = ir.node(node.op_type, node.inputs[:2], attributes)
        total = ir.node("Add", [product.outputs[0], addend])
        for new, suffix in ((product, "product"), (total, "sum")):
            new.outputs[0].name, new.outputs[0].type, new.outputs[0].shape = (
                f"{out.name}_{suffix}",
                out.type,
                out.shape,
            )
        graph.insert_before(node, [product, total])
        if out.is_graph_output():
            total.outputs[0].name, out.name = out.name, f"{out.name}_replaced"
        ir.convenience.replace_all_uses_with(out, total.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _quantize(context: Any) -> Outputs:
    x = context.get_input(0)
    scale, zero_point, low, high, signed = (
        context.get_attribute(name) for name in ("scale", "zero_point", "low", "high", "signed")
    )
    first = -128 if signed else 0
    last = first + 255

    def value(code: int) -> np.float32:
        return np.float32(np.float32(scale) * np.float32(code - zero_point))

    if (low, high) == (zero_point, last):
        x = ops.relu(x).output(0)
    elif (low, high) != (first, last):
        x = ops.clamp(x, float(value(low)), float(value(high))).output(0)
    least, most = value(first), value(last)
    result: Outputs = ops.fake_quantize(x, least, most, least, most, 256).outputs()
    return result


def _dequantize(context: Any) -> Outputs:
    codes = context.get_input(0)
    node = codes.get_node()
    if node.get_type_name() != "Constant":
        return [codes]  # FakeQuantize has dequantized already
    scale, zero_point = context.get_attribute("scale"), context.get_attribute("zero_point")
    steps = ops.constant(np.array(scale, np.float32))
    return _int8_weight(np.array(node.data), np.array(zero_point), steps, _bits(context), context.get_attribute("low"))


def _weight(context: Any) -> Outputs:
    codes, scale, zero_point = _constants(context)
    if codes.dtype == np.int32:  # a bias: as float32 it takes the same space, without scales
        result: Outputs = ops.constant(codes.astype(np.float32) * scale).outputs()
        return result
    return _int8_weight(codes, zero_point, ops.constant(scale), _bits(context), context.get_attribute("low"))


def _int8_weight(codes: np.ndarray, zero_point: np.ndarray, scale: Any, bits: int, low: int) -> Outputs:
    if bits <= 6:
        stored = ops.convert(_unsigned(codes - low, bits), "i8")
        centred = ops.subtract(stored, ops.constant((zero_point - low).astype(np.int8)))
    else:
        centred = ops.constant((codes.astype(np.int16) - zero_point).astype(np.int8))
    result: Outputs = ops.multiply(ops.convert(centred, "f32"), scale).outputs()
    return result


def _float_layer_weight(context: Any) -> Outputs:
    codes, scale, zero_point = _constants(context)
    bits, low = _bits(context), context.get_attribute("low")
    if bits == 8 and not zero_point.any():
        centred = ops.convert(ops.constant(codes), "f32")
    else:
        stored = ops.convert(_unsigned(codes.astype(np.int16) - low, bits), "f32")
        centred = ops.subtract(stored, ops.convert(_unsigned(zero_point - low, bits), "f32"))
    result: Outputs = ops.multiply(centred, ops.constant(scale)).outputs()
    return result


def _unsigned(codes: np.ndarray, bits: int) -> Any:
    """Codes from 0 on, as a constant of the narrowest type."""
    carrier = _CARRIERS.get(bits if bits != 5 else 6, openvino.Type.u8)
    return openvino.op.Constant(carrier, openvino.Shape(list(codes.shape)), codes.reshape(-1).tolist())


def _constants(context: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, and scale and zero point in a shape that broadcasts to them."""
    codes, scale, zero_point = (np.array(context.get_input(index).get_node().data) for index in range(3))
    shape = [1] * codes.ndim
    shape[context.get_attribute("axis")] = -1
    return codes, scale.reshape(shape), zero_point.reshape(shape)


def _bits(context: Any) -> int:
    return max(2, int(context.get_attribute("high") - context.get_attribute("low")).bit_length())
