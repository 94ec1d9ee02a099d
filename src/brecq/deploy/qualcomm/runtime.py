"""Encodings applied again: the float ONNX file with every tensor put on the grid that its encoding says.

ONNX Runtime computes it. It is what the encodings say and nothing else: what they lack is float.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from brecq.deploy.onnx.session import Session
from brecq.deploy.qualcomm.encodings import Encoding, Encodings, read
from brecq.errors import ExportError, first_line

WIDE = 16
WIDE_OPSET, WIDE_IR_VERSION = 21, 10
"""The first that have QuantizeLinear of 16 bits."""

_CHANNELS = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 0}
"""The axis of a layer's weight that its channels are along."""


def load(path: Path, threads: int = 1) -> Session:
    """An exported file with the encodings beside it, in ONNX Runtime.

    Raises:
        ExportError: one of the two is missing, or names tensors that the other lacks.
    """
    model = _model(path)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    names, signed = (json.loads(facts.get(key, "{}")) for key in ("brecq.codes", "brecq.signed"))
    applied = apply(model, read(path.with_suffix(".encodings")), names, signed)
    settings = {"session.disable_quant_qdq": "1"}  # or constant weights between Q/DQ are quantized once more
    session = Session(applied.SerializeToString(), threads, settings, facts.get("brecq.digest"))
    session.name, session.timed = "ONNX Runtime (encodings applied)", False
    return session


def apply(
    model: onnx.ModelProto,
    encodings: Encodings,
    names: Mapping[str, str] | None = None,
    signed: Collection[str] = (),
) -> onnx.ModelProto:
    """A copy of a float model with its parameters rounded to their grids, and Q/DQ behind its activations.

    Args:
        names: what to call the codes of tensors. signed: of which tensors they are INT8.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    axes = {node.input[1]: _CHANNELS[node.op_type] for node in graph.node if node.op_type in _CHANNELS}
    for each in encodings.param_encodings:
        if each.name not in stored:
            raise ExportError(f"the encodings name the parameter {each.name!r}, which the ONNX file lacks")
        values = numpy_helper.to_array(stored[each.name])
        axis = axes.get(each.name, 0)
        rounded = each.values(each.codes(values, axis), axis)
        stored[each.name].CopyFrom(numpy_helper.from_array(rounded, each.name))
    for each in encodings.activation_encodings:
        _quantize(graph, each, (names or {}).get(each.name, f"{each.name}_codes"), each.name in signed)
    if any(each.bw > 8 for each in encodings.activation_encodings):
        found.ir_version = WIDE_IR_VERSION
        for domain in found.opset_import:
            domain.version = WIDE_OPSET if domain.domain == "" else domain.version
    return found


def _quantize(graph: onnx.GraphProto, each: Encoding, codes: str, signed: bool) -> None:
    """Put QuantizeLinear and DequantizeLinear behind a tensor, and between them Clip where codes do not fill a type:
    UINT8 or INT8 holds every encoding of up to 8 bits, INT16 those of 16."""
    outputs = {value.name for value in graph.output}
    made = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    if each.name not in made:
        raise ExportError(f"the encodings name the tensor {each.name!r}, which the ONNX file lacks")
    if each.bw > 8 and each.bw != WIDE:
        raise ExportError(f"the activation {each.name!r} has {each.bw} bits; at most 8 are applied here, or {WIDE}")
    name = f"{each.name}_encoding"
    dtype = np.int16 if each.bw == WIDE else np.int8 if signed else np.uint8
    low = 0 if dtype is np.uint8 else -(1 << (each.bw - 1))
    values = {"scale": np.array(each.scale[0], np.float32), "zero": np.array(low - each.offset[0], dtype)}
    if each.bw < 8:
        values |= {"low": np.array(low, dtype), "high": np.array(low + 2**each.bw - 1, dtype)}
    graph.initializer.extend(numpy_helper.from_array(value, f"{name}_{key}") for key, value in values.items())
    made_here = each.name in outputs or codes == each.name
    before = f"{each.name}_float" if made_here else each.name
    after = each.name if each.name in outputs else f"{name}_value"
    for node in graph.node:
        node.input[:] = [after if value == each.name else value for value in node.input]
        node.output[:] = [before if value == each.name else value for value in node.output]
    whole = f"{name}_all" if each.bw < 8 else codes
    nodes = [helper.make_node("QuantizeLinear", [before, f"{name}_scale", f"{name}_zero"], [whole], f"{name}_q")]
    if each.bw < 8:
        nodes.append(helper.make_node("Clip", [whole, f"{name}_low", f"{name}_high"], [codes], f"{name}_clip"))
    nodes.append(helper.make_node("DequantizeLinear", [codes, f"{name}_scale", f"{name}_zero"], [after], f"{name}_dq"))
    index = next((i for i, node in enumerate(graph.node) if before in node.output), -1)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*rest[: index + 1], *nodes, *rest[index + 1 :]])


def _model(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:
        raise ExportError(f"{path} is not an ONNX file: {first_line(error)}") from error
