"""The rules of explicit quantization that TensorRT's documentation states, checked without a GPU.

`lint` reads a model and names every breach: zero points, types and scales of Q/DQ pairs, layers whose inputs are
quantized in part, residual additions, concatenations, names and shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

PASSING = {
    "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Expand", "Identity",
    "Pad", "Split", "DepthToSpace", "Tile", "Resize",
}  # fmt: skip
"""Operators that TensorRT moves Q/DQ pairs across."""

LAYERS = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 0}
"""Layers, and the axis of their weights that counts outputs."""

OPSETS = range(13, 22)
"""Opsets of ONNX whose QuantizeLinear and DequantizeLinear TensorRT's parser reads as brecq writes them."""


def lint(model: onnx.ModelProto) -> list[str]:
    """Every breach of a rule, as a sentence that names the node; empty for a clean model."""
    graph = _Graph(model)
    checks = (_opset, _names, _pairs, _layers, _additions, _concatenations, _shapes)
    return [finding for check in checks for finding in check(graph)]


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.nodes = model, list(model.graph.node)
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}

    @cached_property
    def readers(self) -> dict[str, list[NodeProto]]:
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def array(self, name: str) -> np.ndarray | None:
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def maker(self, name: str, op: str) -> NodeProto | None:
        node = self.makers.get(name)
        return node if node is not None and node.op_type == op else None

    def source(self, name: str) -> NodeProto | None:
        """The DequantizeLinear that a tensor comes from, seen through operators that pairs are moved across."""
        node = self.makers.get(name)
        while node is not None and node.op_type in PASSING:
            node = self.makers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None


def _opset(graph: _Graph) -> Iterator[str]:
    for each in graph.model.opset_import:
        if each.domain:
            yield f"operators of the domain {each.domain!r} are not ONNX's own"
        elif each.version not in OPSETS:
            yield f"opset {each.version} is none of {OPSETS.start} to {OPSETS.stop - 1}"


def _names(graph: _Graph) -> Iterator[str]:
    counts = Counter(node.name for node in graph.nodes)
    yield from (f"{count} nodes are called {name!r}" for name, count in counts.items() if count > 1 or not name)


def _pairs(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            floats = [name for name in node.input if graph.maker(name, "QuantizeLinear") is not None]
            if floats:
                yield f"{node.name} computes on the codes {floats[0]}: behind QuantizeLinear comes DequantizeLinear"
            continue
        scale = graph.array(node.input[1])
        if scale is None:
            yield f"the scale of {node.name} is no constant"
        elif not (np.isfinite(scale).all() and (scale > 0).all()):
            yield f"the scale of {node.name} is not positive"
        if len(node.input) < 3:
            yield f"{node.name} has no zero point, and is UINT8 for that"
            continue
        zero = graph.constants.get(node.input[2])
        if zero is None or np.any(numpy_helper.to_array(zero).astype(np.int32)):
            yield f"the zero point of {node.name} is not 0"
        elif zero.data_type not in (TensorProto.INT8, TensorProto.INT4):
            yield f"{node.name} is of the type {TensorProto.DataType.Name(zero.data_type)}; TensorRT takes INT8 (INT4)"
        is_activation = node.input[0] not in graph.constants
        if is_activation and scale is not None and scale.size != 1:
            yield f"{node.name} has {scale.size} scales; activations have one"
        if (
            node.op_type == "DequantizeLinear"
            and is_activation
            and graph.maker(node.input[0], "QuantizeLinear") is None
        ):
            yield f"{node.name} reads no QuantizeLinear"


def _layers(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type not in LAYERS:
            continue
        data, weight = graph.source(node.input[0]), graph.maker(node.input[1], "DequantizeLinear")
        stored = None if weight is None else graph.constants.get(weight.input[0])
        if weight is None or stored is None:
            if data is not None and node.input[1] in graph.constants:
                yield f"{node.name} has a quantized input and a float weight"
            continue
        four = stored.data_type == TensorProto.INT4
        if four and (data is not None or node.op_type != "MatMul"):
            yield f"{node.name} has an INT4 weight; TensorRT takes them in linear layers with float inputs alone"
        if not four and data is None:
            yield f"{node.name} has an INT8 weight, but its input is not quantized"
        scale = graph.array(weight.input[1])
        block = next((a.i for a in weight.attribute if a.name == "block_size"), 0)
        axis = next((a.i for a in weight.attribute if a.name == "axis"), 1)
        if scale is not None and scale.size > 1 and not block and axis != LAYERS[node.op_type]:
            yield f"the scales of the weight of {node.name} run along axis {axis}, not along its outputs"
        if len(node.input) > 2 and node.input[2] not in graph.constants:
            yield f"the bias of {node.name} is no float constant"


def _additions(graph: _Graph) -> Iterator[str]:
    """A residual addition becomes a part of the convolution before it if the other operand is quantized."""
    for node in graph.nodes:
        if node.op_type != "Add" or any(name in graph.constants for name in node.input):
            continue
        makers = [graph.makers.get(name) for name in node.input]
        layers = [m for m in makers if m is not None and m.op_type in LAYERS and graph.source(m.input[0]) is not None]
        quantized = [graph.source(name) is not None for name in node.input]
        ends_in_codes = any(_is_quantized(graph, name) for name in node.output)
        if layers and ends_in_codes and sum(quantized) < len(node.input) - 1:
            yield f"{node.name} adds to {layers[-1].name} what is not quantized"


def _is_quantized(graph: _Graph, name: str) -> bool:
    readers = graph.readers.get(name, [])
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        return _is_quantized(graph, readers[0].output[0])
    return any(reader.op_type == "QuantizeLinear" for reader in readers)


def _concatenations(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type != "Concat" or not _is_quantized(graph, node.output[0]):
            continue
        sources = [graph.source(name) for name in node.input]
        scales = {None if each is None else float(graph.array(each.input[1]) or 0) for each in sources}
        if len(scales) > 1:
            yield f"the parts of {node.name} are on {len(scales)} grids; TensorRT joins one"


def _shapes(graph: _Graph) -> Iterator[str]:
    for value in graph.model.graph.input:
        for place, dimension in enumerate(value.type.tensor_type.shape.dim):
            if place and not dimension.HasField("dim_value"):
                yield f"dimension {place} of the input {value.name} is not fixed"
