"""From the neutral graph to standard ONNX: the form that ONNX Runtime turns into integer kernels.

Activations are uint8 QuantizeLinear and DequantizeLinear, with an integer Clip between them where fewer codes are used
(Q/DQ of narrower types falls back to float kernels, or does not load). Weights are unpacked to INT8 by a constant
subgraph (`packing`), biases are INT32 with the scale s_x·s_w.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from brecq.deploy.onnx import packing, tidy, weight_only
from brecq.deploy.onnx.build import Builder, brecq_nodes, integer, only_reader, producer, readers, value_of, width_of
from brecq.deploy.onnx.names import unique_names
from brecq.deploy.onnx.neutral import DOMAIN
from brecq.deploy.onnx.packing import Pack
from brecq.errors import ExportError


def _weight_widths(graph: ir.Graph) -> set[int]:
    """Bit-widths of the weights of a neutral graph."""
    return {width_of(node) for node in brecq_nodes(graph, "DequantizeConstant") if not is_wide(node)}


def _check(graph: ir.Graph) -> None:
    """Raise `ExportError` for weights that no integer kernel takes; the message names them."""
    bad = []
    for node in brecq_nodes(graph, "DequantizeConstant"):
        if not is_wide(node) and not _is_activation(node) and not _fits_int8(*codes_of(node)):
            bad.append(str(node.inputs[0].name))  # type: ignore[union-attr]
    if bad:
        raise ExportError(
            f"8-bit asymmetric weights have no integer kernel: {', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}; "
            "quantize with --weight-scheme symmetric (or auto), or with fewer than 8 bits"
        )


def lower(model: ir.Model, pack: Pack) -> set[int]:
    """Rewrite a neutral model in place; returns the bit-widths of its weights.

    Raises:
        ExportError: a weight has no integer kernel.
    """
    graph = model.graph
    tidy.constant_weights(graph)
    _check(graph)
    widths = _weight_widths(graph)
    tidy.fold_pads(graph)
    tidy.global_pools(graph)
    tidy.linear_layers(graph)
    tidy.move_codes(graph)
    tidy.keep_softmax_float(graph)
    weight_only.linear_layers(graph)
    tidy.drop_unread(graph)
    tidy.protect_float_weights(graph)
    build = Builder(graph)
    for node in sorted(brecq_nodes(graph, "DequantizeConstant"), key=is_wide):  # biases last
        _lower_constant(build, node, pack)
    for node in brecq_nodes(graph, "Quantize"):
        lower_quantize(build, node)
    for node in brecq_nodes(graph, "Dequantize"):
        lower_dequantize(build, node)
    tidy.drop_unread(graph)
    opset, version = packing.requirements(pack, widths)
    model.opset_imports.clear()
    model.opset_imports[""] = opset
    model.ir_version = version
    graph.sort()
    unique_names(graph)
    return widths


def _lower_constant(build: Builder, node: ir.Node, pack: Pack) -> None:
    codes, zero_point = codes_of(node)
    name, axis, bits = str(node.inputs[0].name), integer(node, "axis"), width_of(node)  # type: ignore[union-attr]
    scale = value_of(node.inputs[1])
    if _is_activation(node) and not _fits_int8(codes, zero_point):
        parts = (codes, scale.reshape(()), zero_point.astype(np.uint8).reshape(()))
        inputs = [
            build.constant(f"{name}{end}", part) for end, part in zip(("", "_scale", "_zero"), parts, strict=True)
        ]
        value = build.node(node, "DequantizeLinear", inputs, None, ir.DataType.FLOAT, codes.shape)
        build.replace(node, value)
        return
    is_fused = weight_only.is_fused(node)
    is_native = not is_wide(node) and (pack == "native" or (is_fused and pack == "cast"))
    if is_wide(node):
        stored = build.constant(name, codes)
    elif is_native:
        stored = packing.native(build, name, codes, bits)
    else:
        stored = packing.unpacked(build, node, name, codes, zero_point, integer(node, "low"), bits, pack)
    if not is_native and not is_fused and not any(_reads_codes(reader) for reader in readers(node.outputs[0])):
        # Constant folding makes a float tensor of it when the file is loaded; DequantizeLinear is never folded. Behind
        # a quantized input it must stay: ONNX Runtime quantizes constant float weights there by itself, per tensor.
        shaped = build.constant(f"{name}_steps", _broadcast(scale, codes.ndim, axis))
        kind = ir.DataType.FLOAT
        real = build.node(node, "Cast", [stored], None, kind, codes.shape, {"to": int(kind)})
        build.replace(node, build.node(node, "Mul", [real, shaped], None, kind, codes.shape))
        return
    steps = _product_of_steps(build, node, scale) if is_wide(node) and pack != "int8" else None
    if steps is None:
        steps = build.constant(f"{name}_scale", scale if axis >= 0 else scale.reshape(()))
    inputs = [stored, steps]
    if not is_wide(node):  # without a zero point Gemm is not recognized
        zero = zero_point if is_native else np.zeros_like(zero_point)
        zero = zero.reshape(-1) if axis >= 0 else zero.reshape(())
        inputs.append(packing.native(build, f"{name}_zero_point", zero, bits if is_native else 8))
    attributes = {"axis": axis} if axis >= 0 else {}
    result = build.node(node, "DequantizeLinear", inputs, None, ir.DataType.FLOAT, codes.shape, attributes)
    build.replace(node, result)


def _product_of_steps(build: Builder, bias: ir.Node, scale: np.ndarray) -> ir.Value | None:
    """The scale of a bias, computed from the steps of its input and weight: 4 bytes a channel less to store."""
    layer = only_reader(bias.outputs[0])
    x = None if layer is None else producer(layer.inputs[0], "Dequantize", DOMAIN)
    weight = None if layer is None else producer(layer.inputs[1], "DequantizeLinear")
    if x is None or weight is None:
        return None
    steps, step = weight.inputs[1], np.array(x.attributes["scale"].as_float(), np.float32)
    if steps is None or not np.array_equal(value_of(steps) * step, scale):
        return None
    return build.node(bias, "Mul", [steps, build.constant("scale", step)], None, ir.DataType.FLOAT, scale.shape)


def lower_quantize(build: Builder, node: ir.Node) -> None:
    """Replace `Quantize` by QuantizeLinear, with a Clip of codes where they are fewer than its type's."""
    output = node.outputs[0]
    scale, zero = _qparams(build, node, str(output.name))
    low, high, signed = (integer(node, key) for key in ("low", "high", "signed"))
    name, output.name = output.name, f"{output.name}_neutral"
    clip = (low, high) != ((-128, 127) if signed else (0, 255))
    inputs = [node.inputs[0], scale, zero]
    codes = build.node(node, "QuantizeLinear", inputs, f"{name}_all" if clip else name, output.dtype, output.shape)
    if clip:
        kind = np.int8 if signed else np.uint8
        bounds = [build.constant(f"code{bound}", np.array(bound, kind)) for bound in (low, high)]
        codes = build.node(node, "Clip", [codes, *bounds], name, output.dtype, output.shape)
    build.replace(node, codes)


def lower_dequantize(build: Builder, node: ir.Node) -> None:
    """Replace `Dequantize` by DequantizeLinear."""
    output = node.outputs[0]
    scale, zero = _qparams(build, node, str(node.inputs[0].name))  # type: ignore[union-attr]
    value = build.node(
        node, "DequantizeLinear", [node.inputs[0], scale, zero], f"{output.name}_dq", output.dtype, output.shape
    )
    build.replace(node, value)


def _qparams(build: Builder, node: ir.Node, name: str) -> tuple[ir.Value, ir.Value]:
    scale = np.array(node.attributes["scale"].as_float(), np.float32)
    zero = np.array(integer(node, "zero_point"), np.int8 if integer(node, "signed") else np.uint8)
    return build.constant(f"{name}_scale", scale), build.constant(f"{name}_zero_point", zero)


def _reads_codes(node: ir.Node) -> bool:
    """True for a layer whose input is quantized too."""
    return producer(node.inputs[0], "Dequantize", DOMAIN) is not None


def _is_activation(node: ir.Node) -> bool:
    """True for a constant in the place of an activation, such as a learned query: it is on an activation's grid."""
    return value_of(node.inputs[0]).dtype == np.uint8 and integer(node, "axis") < 0


def _fits_int8(codes: np.ndarray, zero_point: np.ndarray) -> bool:
    difference = codes.astype(np.int64) - zero_point
    return bool(difference.min(initial=0) >= -128 and difference.max(initial=0) <= 127)


def is_wide(node: ir.Node) -> bool:
    """True for int32 biases."""
    return value_of(node.inputs[0]).dtype == np.int32


def codes_of(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """Codes and zero points of a constant, the latter broadcasting to the former."""
    codes = value_of(node.inputs[0])
    return codes, _broadcast(value_of(node.inputs[2]), codes.ndim, integer(node, "axis"))


def _broadcast(values: np.ndarray | None, ndim: int, axis: int) -> np.ndarray:
    assert values is not None
    shape = [1] * ndim
    if axis >= 0:
        shape[axis] = -1
    return values.reshape(shape)
