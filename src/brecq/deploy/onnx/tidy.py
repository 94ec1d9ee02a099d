"""Rewrites of the neutral graph into the shapes that ONNX Runtime has integer kernels for; values stay the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from brecq.deploy.onnx.build import Builder, array, brecq_nodes, integer, only_reader, producer, readers
from brecq.deploy.onnx.neutral import DOMAIN

_CODES = {(0, 0): ir.DataType.UINT8, (0, 1): ir.DataType.INT8}


def constant_weights(graph: ir.Graph) -> None:
    """Spell weights with one scale in all as `DequantizeConstant` too, with axis -1."""
    build = Builder(graph)
    for node in brecq_nodes(graph, "Dequantize"):
        codes = node.inputs[0]
        if codes is None or codes.const_value is None:
            continue
        scale = build.constant(f"{codes.name}_scale", np.float32(node.attributes["scale"].as_float()).reshape(1))
        zero = build.constant(f"{codes.name}_zero_point", np.array([integer(node, "zero_point")], np.int64))
        grid = {"axis": -1, "low": integer(node, "low"), "high": integer(node, "high")}
        out = node.outputs[0]
        value = build.node(
            node, "DequantizeConstant", [codes, scale, zero], f"{out.name}_w", out.dtype, out.shape, grid, DOMAIN
        )
        build.replace(node, value)


def fold_pads(graph: ir.Graph) -> None:
    """Let convolutions do the zero padding in front of them; in ONNX their pads need not be symmetric."""
    for node in list(graph):
        if node.op_type != "Pad" or node.outputs[0].is_graph_output():
            continue
        pads = _zero_pads(node)
        convolutions = readers(node.outputs[0])
        if pads is None or not all(_takes_pads(reader) for reader in convolutions):
            continue
        half = len(pads) // 2
        if any(pads[:2]) or any(pads[half : half + 2]):
            continue
        extra = pads[2:half] + pads[half + 2 :]
        for reader in convolutions:
            own = reader.attributes.get("pads")
            total = np.add(extra, own.as_ints() if own is not None else 0)
            reader.attributes["pads"] = ir.AttrInt64s("pads", total.tolist())
            reader.replace_input_with(0, node.inputs[0])
        graph.remove(node, safe=True)


def _zero_pads(node: ir.Node) -> list[int] | None:
    mode = node.attributes.get("mode")
    fill = array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(())
    pads = array(node.inputs[1])
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    constant = mode is None or mode.as_string() == "constant"
    return pads.tolist() if constant and pads is not None and axes is None and fill is not None and not fill else None


def _copies(pad: ir.Node) -> bool:
    """True for a padding with elements of its input: reflected, repeated, from the other side."""
    mode = pad.attributes.get("mode")
    return mode is not None and mode.as_string() != "constant"


def _takes_pads(node: ir.Node) -> bool:
    automatic = node.attributes.get("auto_pad")
    return node.op_type == "Conv" and (automatic is None or automatic.as_string() in ("NOTSET", ""))


def global_pools(graph: ir.Graph) -> None:
    """Spell the mean over height and width as GlobalAveragePool."""
    build = Builder(graph)
    for node in list(graph):
        if node.op_type != "ReduceMean" or integer(node, "keepdims") != 1:
            continue
        if len(node.inputs) < 2:  # over everything
            continue
        source, axes, shape = node.inputs[0], array(node.inputs[1]), node.outputs[0].shape
        rank = 0 if shape is None else len(shape)
        if axes is not None and rank == 4 and sorted(axis % 4 for axis in axes.tolist()) == [2, 3]:
            name = f"{node.outputs[0].name}_pool"
            build.replace(node, build.node(node, "GlobalAveragePool", [source], name, ir.DataType.FLOAT, shape))


def linear_layers(graph: ir.Graph) -> None:
    """Spell a linear layer on [N, T, K] as Gemm on [N·T, K], which has a kernel with an int32 bias."""
    build = Builder(graph)
    for product in list(graph):
        turned = producer(product.inputs[1], "Transpose") if product.op_type == "MatMul" else None
        weight = None if turned is None else producer(turned.inputs[0], "DequantizeConstant", DOMAIN)
        if weight is None:
            continue
        x = product.inputs[0]
        if x is None or x.shape is None or product.outputs[0].shape is None:
            continue
        if producer(_behind_movement(x), "Dequantize", DOMAIN) is None:
            continue  # its input is float: the weight alone is quantized
        shape = list(product.outputs[0].shape)
        if any(not isinstance(size, int) for size in shape[1:]):
            continue
        addition = only_reader(product.outputs[0])
        bias = _added_bias(addition, product.outputs[0])
        last = product if bias is None or addition is None else addition
        inputs = [_rows(build, product, x), weight.outputs[0], *([] if bias is None else [bias])]
        name = last.outputs[0].name
        gemm = build.node(last, "Gemm", inputs, f"{name}_rows", ir.DataType.FLOAT, [None, shape[-1]], {"transB": 1})
        quantizer = only_reader(last.outputs[0])
        target = last
        if quantizer is not None and quantizer.op_type == "Quantize" and quantizer.domain == DOMAIN:
            attributes = {key: attribute.value for key, attribute in quantizer.attributes.items()}
            dtype = quantizer.outputs[0].dtype
            label = quantizer.outputs[0].name
            quantizer.outputs[0].name = f"{label}_replaced"
            gemm = build.node(quantizer, "Quantize", [gemm], label, dtype, [None, shape[-1]], attributes, DOMAIN)
            target = quantizer
        sizes = build.constant(f"{name}_shape", np.array([-1, *shape[1:]], np.int64))
        restored = build.node(target, "Reshape", [gemm, sizes], f"{name}_restored", gemm.dtype, shape)
        build.replace(target, restored)
        for node in dict.fromkeys((last, product, turned)):
            if node is not None and node.graph is not None and not any(readers(o) for o in node.outputs):
                graph.remove(node, safe=True)


def _rows(build: Builder, before: ir.Node, x: ir.Value) -> ir.Value:
    assert x.shape is not None
    width = x.shape[-1]
    sizes = build.constant("rows_shape", np.array([-1, width], np.int64))
    return build.node(before, "Reshape", [x, sizes], f"{before.outputs[0].name}_in", x.dtype, [None, width])


def _added_bias(addition: ir.Node | None, product: ir.Value) -> ir.Value | None:
    if addition is None or addition.op_type != "Add":
        return None
    other = next((value for value in addition.inputs if value is not product), None)
    return other if producer(other, "DequantizeConstant", DOMAIN) is not None else None


def protect_float_weights(graph: ir.Graph) -> None:
    """Keep float weights behind a quantized input in float.

    ONNX Runtime quantizes them by itself, per tensor, where they are constants between Q/DQ. Cut to their own size
    plus that of the batch, they are the same weights, but no constants.
    """
    build = Builder(graph)
    rows: ir.Value | None = None
    kept: dict[ir.Value, ir.Value] = {}  # several layers may share a weight
    for node in list(graph):
        weight = node.inputs[1] if node.op_type in ("Conv", "ConvTranspose", "Gemm") else None
        if weight is None or weight.const_value is None or producer(node.inputs[0], "Dequantize", DOMAIN) is None:
            continue
        first = next(iter(graph))
        if rows is None:
            ends = {"start": 0, "end": 1}
            rows = build.node(first, "Shape", [graph.inputs[0]], "batch_size", ir.DataType.INT64, [1], ends)
        if weight not in kept:
            assert weight.shape is not None
            size = build.constant(f"{weight.name}_rows", np.array([weight.shape[0]], np.int64))
            end = build.node(node, "Add", [size, rows], f"{weight.name}_end", ir.DataType.INT64, [1])
            start = build.constant("start", np.zeros(1, np.int64))
            inputs = [weight, start, end]
            kept[weight] = build.node(node, "Slice", inputs, f"{weight.name}_kept", weight.dtype, weight.shape)
        node.replace_input_with(1, kept[weight])


def keep_softmax_float(graph: ir.Graph) -> None:
    """Put Abs, which changes no number there, between a softmax and the quantizer behind it.

    ONNX Runtime has an integer kernel for a softmax between Q/DQ that multiplies by the *whole part* of 1/scale: of a
    4-bit output from 0 to 1 by 14 instead of 15, and of a narrow range by what overflows.
    """
    build = Builder(graph)
    for node in [each for each in graph if each.op_type == "Softmax" and not each.domain]:
        old = node.outputs[0]
        if producer(node.inputs[0], "Dequantize", DOMAIN) is None or not _is_quantized(old):
            continue
        reading = readers(old)
        value = build.node(node, "Abs", [old], f"{old.name}_kept", old.dtype, old.shape)
        for reader in reading:
            for index, each in enumerate(reader.inputs):
                if each is old:
                    reader.replace_input_with(index, value)


def _is_quantized(value: ir.Value) -> bool:
    """True if a quantizer reads a value, as it is or moved."""
    return any(
        (node.op_type == "Quantize" and node.domain == DOMAIN)
        or (node.op_type in MOVEMENT and any(map(_is_quantized, node.outputs)))
        for node in readers(value)
    )


def _behind_movement(value: ir.Value | None) -> ir.Value | None:
    node = None if value is None else value.producer()
    while node is not None and node.op_type in MOVEMENT:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return value


MOVEMENT = {
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Expand", "Tile", "MaxPool",
    "Resize", "DepthToSpace", "Identity", "Pad", "Concat", "Split",
}  # fmt: skip
"""Operators whose output holds elements of their first input only, or zeros (`Pad`), or of all (`Concat`)."""


def move_codes(graph: ir.Graph) -> None:
    """Move data as codes: where an operator only moves dequantized data, dequantize behind it.

    What reads the data then reads it from a Dequantize directly, as kernels are recognized.
    """
    build = Builder(graph)
    for node in list(graph):  # in order: a chain of them is passed in one go
        if node.op_type not in MOVEMENT or node.domain:
            continue
        count = len(node.inputs) if node.op_type == "Concat" else 1
        sources = [producer(value, "Dequantize", DOMAIN) for value in node.inputs[:count]]
        grid = common_grid(sources)
        if grid is None or not keeps_elements(node):
            continue
        codes = [source.inputs[0] for source in sources if source is not None]
        dtype = codes[0].dtype if codes[0] is not None else None
        inputs = [*codes, *node.inputs[count:]]
        if node.op_type == "Pad" and not _copies(node):
            fill = np.array(grid["zero_point"], np.int8 if grid["signed"] else np.uint8)
            inputs = [codes[0], node.inputs[1], build.constant("pad_code", fill), *node.inputs[3:]]
        moved = ir.node(
            node.op_type, inputs, {k: a.value for k, a in node.attributes.items()},
            num_outputs=len(node.outputs), name=node.name,
        )  # fmt: skip
        graph.insert_before(node, moved)
        for old, new in zip(node.outputs, moved.outputs, strict=True):
            new.name, new.shape = f"{old.name}_codes", old.shape
            if dtype is not None:
                new.dtype = dtype
            value = build.node(node, "Dequantize", [new], f"{old.name}_value", old.dtype, old.shape, grid, DOMAIN)
            if old.is_graph_output():
                value.name, old.name = old.name, f"{old.name}_replaced"
            ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    drop_unread(graph)


def common_grid(sources: list[ir.Node | None]) -> dict[str, Any] | None:
    """Attributes of the Dequantize nodes if equal codes mean equal values in all of them."""
    grids = [None if s is None else {k: a.value for k, a in s.attributes.items()} for s in sources]
    first = grids[0]
    if first is None:
        return None
    same = ("scale", "zero_point", "signed")
    if not all(grid is not None and all(grid[key] == first[key] for key in same) for grid in grids):
        return None
    return {**first, "low": min(g["low"] for g in grids if g), "high": max(g["high"] for g in grids if g)}


def keeps_elements(node: ir.Node) -> bool:
    """False for a movement that computes new numbers: interpolation, padding with other than 0."""
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    if node.op_type == "Pad":
        return _copies(node) or _zero_pads(node) is not None
    return True


def drop_unread(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing reads."""
    for node in reversed(list(graph)):
        if not any(readers(output) or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not readers(value) and not value.is_graph_output():
            graph.initializers.pop(name)
