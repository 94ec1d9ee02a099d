"""From the neutral graph to explicit quantization as TensorRT reads it.

Activations are pairs of QuantizeLinear and DequantizeLinear on INT8 with zero point 0; between the pairs everything is
float, ReLUs included: TensorRT fuses. Weights are INT8 constants behind DequantizeLinear, those of linear layers with
float inputs INT4 in blocks, biases float constants.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from brecq.deploy.onnx import packing, tidy, weight_only
from brecq.deploy.onnx.build import Builder, brecq_nodes, integer, producer, value_of, width_of
from brecq.deploy.onnx.lower import codes_of, is_wide, lower_dequantize, lower_quantize
from brecq.deploy.onnx.names import unique_names
from brecq.deploy.onnx.neutral import DOMAIN
from brecq.deploy.tensorrt.lint import PASSING

INT4_OPSET = 21
BLOCKS = (128, 64, 32, 16)
"""Sizes of the blocks of INT4 weights along the inputs, the first that divides them."""


def lower(model: ir.Model) -> int:
    """Rewrite a neutral model in place; returns its opset."""
    graph = model.graph
    tidy.constant_weights(graph)
    tidy.fold_pads(graph)
    tidy.global_pools(graph)
    weight_only.linear_layers(graph, everywhere=True)
    _quantize_concatenations(graph)
    tidy.drop_unread(graph)
    build = Builder(graph)
    packed = [_lower_constant(build, node) for node in brecq_nodes(graph, "DequantizeConstant")]
    for node in brecq_nodes(graph, "Quantize"):
        lower_quantize(build, node)
    for node in brecq_nodes(graph, "Dequantize"):
        lower_dequantize(build, node)
    tidy.drop_unread(graph)
    opset, version = (INT4_OPSET, 10) if any(packed) else (18, 8)
    model.opset_imports.clear()
    model.opset_imports[""] = opset
    model.ir_version = version
    graph.sort()
    unique_names(graph)
    return opset


def _quantize_concatenations(graph: ir.Graph) -> None:
    """Put a pair behind a concatenation whose parts are on one grid, which changes nothing: a layer finds it there."""
    build = Builder(graph)
    for node in list(graph):
        if node.op_type != "Concat" or node.domain:
            continue
        grid = tidy.common_grid([_dequantizer(value) for value in node.inputs])
        out = node.outputs[0]
        if grid is None:
            continue
        readers = [(reader, index) for reader, index in out.uses()]
        first = readers[0][0] if readers else None
        if first is None:
            continue
        codes = build.node(first, "Quantize", [out], f"{out.name}_joined", ir.DataType.INT8, out.shape, grid, DOMAIN)
        value = build.node(first, "Dequantize", [codes], f"{out.name}_value", out.dtype, out.shape, grid, DOMAIN)
        for reader, index in readers:
            reader.replace_input_with(index, value)
    graph.sort()


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """What dequantizes a value, seen through operators that pairs are moved across (a shuffle of channels)."""
    node = None if value is None else value.producer()
    while node is not None and not node.domain and node.op_type in PASSING and tidy.keeps_elements(node):
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return producer(node.outputs[0], "Dequantize", DOMAIN) if node is not None else None


def _lower_constant(build: Builder, node: ir.Node) -> bool:
    """True if the weight is stored as INT4."""
    codes, zero_point = codes_of(node)
    build.forget(node.inputs[0])
    name, axis = str(node.inputs[0].name), integer(node, "axis")  # type: ignore[union-attr]
    scale, out = value_of(node.inputs[1]), node.outputs[0]
    if is_wide(node):
        real = codes.astype(np.float32) * (scale.reshape(()) if axis < 0 else scale)
        build.replace(node, build.constant(name.removesuffix("_codes"), real.astype(np.float32)))
        return False
    codes = codes - zero_point.astype(codes.dtype)
    four = weight_only.is_fused(node) and width_of(node) <= 4
    attributes = {"axis": axis} if axis >= 0 else {}
    block = next((size for size in BLOCKS if four and codes.shape[0] % size == 0), None)
    if block is not None:
        scale = np.repeat(scale.reshape(1, -1), codes.shape[0] // block, axis=0)
        attributes = {"axis": 0, "block_size": block}
    elif axis < 0:
        scale = scale.reshape(())
    zeros = np.zeros(scale.shape, np.int8)
    inputs = [
        packing.native(build, name, codes, 4 if four else 8),
        build.constant(f"{name}_scale", scale),
        packing.native(build, f"{name}_zero_point", zeros, 4 if four else 8),
    ]
    build.replace(node, build.node(node, "DequantizeLinear", inputs, None, out.dtype, codes.shape, attributes))
    return four
