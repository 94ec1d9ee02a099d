"""QONNX: arbitrary bit-widths for FINN and hls4ml.

Every quantizer is one `Quant` node (domain `qonnx.custom_op.general`) in a float graph: what it quantizes, scale,
zero point and bit-width are its inputs. Weights are stored in float32 on their grid, so the file has the size of the
float network. The program is the converted one as it was measured: nothing is quantized in addition, and activation
functions stay in front of their quantizers, as FINN expects.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import onnx
import onnx_ir as ir

from brecq.deploy.complete import as_converted
from brecq.deploy.formats import Exported, some
from brecq.deploy.onnx import tidy
from brecq.deploy.onnx.build import Builder, brecq_nodes, integer, value_of, width_of
from brecq.deploy.onnx.file import set_batch
from brecq.deploy.onnx.names import unique_names
from brecq.deploy.onnx.neutral import neutral
from brecq.deploy.samples import fixed
from brecq.errors import ConfigError, ExportError
from brecq.storage.files import write as write_file
from brecq.version import __version__

if TYPE_CHECKING:
    from brecq.result import QuantResult

QONNX_DOMAIN = "qonnx.custom_op.general"
Preset = Literal["any", "finn"]

_OPSET, _IR_VERSION = 18, 8


def write(result: QuantResult, path: Path, *, preset: Preset = "any", batch: int | None = None) -> Exported:
    """Write a result as a QONNX file.

    Args:
        preset: `finn` refuses what FINN does not take: zero points other than 0, and float activations. Quantize with
            `--weight-scheme symmetric --activation-scheme symmetric` for it.
        batch: the batch size of the file; the toolchains want a fixed one: 1 by default, where samples do not know of
            each other.

    Raises:
        ConfigError: an unknown preset, or a batch size below 1.
        ExportError: as `brecq.export`, a result that the preset refuses, and one that mixes the samples of a batch
            where no `batch` says of how many.
    """
    if preset not in get_args(Preset):
        raise ConfigError(f"preset is {preset!r}; choose one of {', '.join(get_args(Preset))}")
    converted = as_converted(result)
    size, mixed = fixed(converted, batch, "QONNX")
    model = neutral(converted, _OPSET)
    _fix_batch(model.graph, size)
    tidy.constant_weights(model.graph)
    tidy.fold_pads(model.graph)
    tidy.global_pools(model.graph)
    if preset == "finn":
        _check_finn(model.graph)
    _lower(model)
    model.producer_name, model.producer_version, model.graph.name = "brecq", __version__, "brecq"
    model.metadata_props["brecq.digest"] = result.digest()
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:  # a defect of brecq's, better known now than in a toolchain
        raise ExportError(f"the QONNX graph is not valid: {error}; please report it") from error
    write_file(path, proto.SerializeToString(), ExportError)
    notes = (
        "weights are stored in float32 on their grid, as QONNX has it: the file is as large as the float network",
        *mixed,
    )
    return Exported(path, (path,), path.stat().st_size, notes)


def _fix_batch(graph: ir.Graph, batch: int) -> None:
    """Give the batch a number wherever a shape names it; forget shapes with other unknown sizes, which follow."""
    shapes = [output.shape for node in graph for output in node.outputs if output.shape is not None]
    named = [shape[0] for shape in shapes if len(shape) and isinstance(shape[0], ir.SymbolicDim)]
    symbol = next((size.value for size in named if str(size.value).isidentifier()), None)
    set_batch(graph, batch)
    for value in (output for node in graph for output in node.outputs if not output.is_graph_output()):
        if value.shape is not None:
            sizes = [batch if symbol and str(size) == symbol else size for size in value.shape]
            value.shape = ir.Shape(sizes) if all(isinstance(size, int) for size in sizes) else None


def _check_finn(graph: ir.Graph) -> None:
    """Raise `ExportError` for zero points that FINN does not take; the message names the layers and the options."""
    weights = [
        str(node.inputs[0].name)  # type: ignore[union-attr]
        for node in brecq_nodes(graph, "DequantizeConstant")
        if value_of(node.inputs[2]).any()
    ]
    activations = [
        str(node.inputs[0].name)  # type: ignore[union-attr]
        for node in brecq_nodes(graph, "Quantize")
        if _signedness(node)[1] != 0
    ]
    found = [
        f"{len(names)} {what} ({some(names)}) with {option}"
        for what, names, option in (
            ("weights", weights, "--weight-scheme symmetric"),
            ("activations", activations, "--activation-scheme symmetric"),
        )
        if names
    ]
    if found:
        raise ExportError(f"FINN takes zero points of 0 only; quantize again {' and '.join(found)}")
    if not brecq_nodes(graph, "Quantize"):
        raise ExportError("FINN needs quantized activations; quantize with --activation-bits 8 or fewer")


def _lower(model: ir.Model) -> None:
    graph = model.graph
    build = Builder(graph)
    for node in brecq_nodes(graph, "DequantizeConstant"):
        _lower_constant(build, node)
    for node in brecq_nodes(graph, "Quantize"):
        signed, zero_point = _signedness(node)
        bits = width_of(node)
        scale = np.array(node.attributes["scale"].as_float(), np.float32)
        source = node.inputs[0]
        assert source is not None
        _replace_by_quant(build, node, source, scale, np.array(zero_point), bits, signed=signed, narrow=0)
    for node in brecq_nodes(graph, "Dequantize"):  # Quant has dequantized already
        source = node.inputs[0]
        assert source is not None
        ir.convenience.replace_all_uses_with(node.outputs[0], source, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    tidy.drop_unread(graph)
    for each in graph:
        each.metadata_props.clear()
        for value in each.outputs:
            value.metadata_props.clear()
    model.opset_imports.clear()
    model.opset_imports.update({"": _OPSET, QONNX_DOMAIN: 1})
    model.ir_version = _IR_VERSION
    graph.sort()
    unique_names(graph)


def _lower_constant(build: Builder, node: ir.Node) -> None:
    codes, scale, zero_point = (value_of(node.inputs[index]) for index in range(3))
    shape = [1] * codes.ndim
    if integer(node, "axis") >= 0:
        shape[integer(node, "axis")] = -1
    scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    low, bits, name = integer(node, "low"), width_of(node), str(node.inputs[0].name)  # type: ignore[union-attr]
    value = build.constant(f"{name}_value", (codes.astype(np.int64) - zero_point).astype(np.float32) * scale)
    if bits > 8:  # a bias, on the grid of the accumulator
        build.replace(node, value)
        return
    signed = int(low < 0)
    narrow = int(low == 1 - 2 ** (bits - 1))
    _replace_by_quant(build, node, value, scale, zero_point, bits, signed=signed, narrow=narrow)


def _replace_by_quant(
    build: Builder,
    node: ir.Node,
    source: ir.Value,
    scale: np.ndarray,
    zero_point: np.ndarray,
    bits: int,
    *,
    signed: int,
    narrow: int,
) -> None:
    out = node.outputs[0]
    inputs = [
        source,
        build.constant("scale", scale),
        build.constant("zero_point", zero_point.astype(np.float32)),
        build.constant(f"bits{bits}", np.array(bits, np.float32)),
    ]
    attributes: dict[str, Any] = {"signed": signed, "narrow": narrow, "rounding_mode": "ROUND"}
    dtype = ir.DataType.FLOAT
    quant = build.node(node, "Quant", inputs, f"{out.name}_quant", dtype, out.shape, attributes, QONNX_DOMAIN)
    build.replace(node, quant)


def _signedness(node: ir.Node) -> tuple[int, int]:
    """`signed` and zero point of an activation: codes around the middle of their range are signed ones around 0."""
    zero_point, low, bits = integer(node, "zero_point"), integer(node, "low"), width_of(node)
    middle = 1 << (bits - 1)
    return (1, 0) if low == 0 and zero_point == middle else (int(low < 0), zero_point)
