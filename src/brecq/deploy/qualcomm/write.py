"""The format `qualcomm`: a float ONNX file and its encodings, `model.onnx` and `model.encodings`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from brecq.converted.grids import grid_of
from brecq.deploy.complete import added_note, complete
from brecq.deploy.formats import Exported
from brecq.deploy.onnx import tidy, weight_only
from brecq.deploy.onnx.build import Builder, brecq_nodes, integer, value_of, width_of
from brecq.deploy.onnx.file import check_batch, set_batch, valid
from brecq.deploy.onnx.lower import codes_of, is_wide
from brecq.deploy.onnx.names import unique_names
from brecq.deploy.onnx.neutral import neutral
from brecq.deploy.onnx.write import describe
from brecq.deploy.qualcomm.encodings import Encoding, Encodings, encoding
from brecq.errors import ExportError
from brecq.storage.files import replacing
from brecq.version import __version__

if TYPE_CHECKING:
    from brecq.result import QuantResult

SUFFIX = ".encodings"
CODES = "brecq.codes"
"""In the file's metadata: the names of quantizers by the tensors that they quantize, as JSON."""

SIGNED = "brecq.signed"
"""The tensors among them whose codes lie in int8, as JSON: encodings count all codes from 0 on."""


def write(result: QuantResult, path: Path, *, batch: int | None = None) -> Exported:
    """Write a result as a float ONNX file, and beside it the encodings of its tensors as AIMET writes them.

    Args:
        batch: the size of dimension 0, as Qualcomm's converters want it; dynamic if none is given.

    Raises:
        ConfigError: `batch` is below 1. ExportError: as `brecq.export`; also for a tensor that is quantized twice.
    """
    check_batch(batch)
    if path.suffix == SUFFIX:
        raise ExportError(f"the path is {str(path)!r}; name the ONNX file, its encodings go beside it into {SUFFIX}")
    completed = complete(result, fold_clamps=False)
    model = neutral(completed)
    encodings, names = lower(model)
    describe(model, result, completed, "qualcomm")
    grids = {name: grid_of(node) for name, node in completed.quantizers().items()}
    signed = [tensor for tensor, name in names.items() if grids[name].dtype is torch.int8]
    model.metadata_props.update({CODES: json.dumps(names), SIGNED: json.dumps(signed)})
    if batch is not None:
        set_batch(model.graph, batch)
    proto = valid(model)
    beside = path.with_suffix(SUFFIX)
    with replacing(beside, ExportError) as second, replacing(path, ExportError) as first:
        second.write_text(encodings.text())
        first.write_bytes(proto.SerializeToString())
    widths = {each.bw for each in encodings.param_encodings} - {4, 8, 32}
    widths |= {each.bw for each in encodings.activation_encodings} - {4, 8, 16}
    notes = [f"encodings {encodings.version} of {len(encodings.activation_encodings)} activations and "
             f"{len(encodings.param_encodings)} parameters; not run on a device"]  # fmt: skip
    if widths:
        notes.append(f"{', '.join(map(str, sorted(widths)))} bits: Qualcomm's converters store such weights at 4 or 8")
    return Exported(
        path, (path, beside), path.stat().st_size + beside.stat().st_size, (*notes, *added_note(completed, "qualcomm"))
    )


def lower(model: ir.Model) -> tuple[Encodings, dict[str, str]]:
    """Make a neutral model a float one, in place; returns what its quantizers were, and their names by tensor.

    Raises:
        ExportError: a tensor has two quantizers.
    """
    graph = model.graph
    tidy.constant_weights(graph)
    tidy.fold_pads(graph)
    tidy.global_pools(graph)
    weight_only.linear_layers(graph, everywhere=True)
    tidy.drop_unread(graph)
    build = Builder(graph)
    parameters = [_lower_constant(build, node) for node in brecq_nodes(graph, "DequantizeConstant")]
    found: dict[ir.Value, ir.Node] = {}
    for node in brecq_nodes(graph, "Quantize"):
        source = node.inputs[0]
        assert source is not None
        if source in found:
            raise ExportError(
                f"{source.name} is quantized twice; quantize with --target qualcomm, or placement output"
            )
        found[source] = node
    grids = {value: _grid(node) for value, node in found.items()}
    names = {node: str(node.outputs[0].name) for node in found.values()}
    for value, node in found.items():
        _name(graph, value, str(node.outputs[0].name))
        for reader in [reader for reader, _ in node.outputs[0].uses()]:
            build.replace(reader, value)
    tidy.drop_unread(graph)
    for node in graph:
        if node.op_type in tidy.MOVEMENT and (given := _moved(node, grids)) is not None:
            grids |= {out: given for out in node.outputs if out not in grids}
    model.opset_imports.clear()
    model.opset_imports[""] = 18
    model.ir_version = 8
    graph.sort()
    unique_names(graph)
    activations = [encoding(str(value.name), *grid) for value, grid in grids.items()]
    labels = {str(value.name): names[node] for value, node in found.items()}
    return Encodings(tuple(activations), _unique(parameters), quantizer_args={"tool": f"brecq {__version__}"}), labels


Grid = tuple[int, int, list[float], list[int]]


def _grid(node: ir.Node) -> Grid:
    scale = float(node.attributes["scale"].as_float())
    return width_of(node), integer(node, "low"), [scale], [integer(node, "zero_point")]


def _moved(node: ir.Node, grids: dict[ir.Value, Grid]) -> Grid | None:
    """The grid that moved data stays on; `None` where parts that are joined are on several."""
    count = len(node.inputs) if node.op_type == "Concat" else 1
    found = [grids.get(value) for value in node.inputs[:count] if value is not None]
    return found[0] if found and all(grid == found[0] for grid in found) else None


def _name(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Call a tensor after its quantizer, unless it is one of the network's own."""
    if not (value.is_graph_output() or value.is_graph_input() or value.is_initializer()):
        taken = {v.name for v in (*graph.inputs, *graph.outputs)} | graph.initializers.keys()
        value.name = name if name not in taken else f"{name}.value"


def _lower_constant(build: Builder, node: ir.Node) -> Encoding:
    codes, zero_point = codes_of(node)
    build.forget(node.inputs[0])
    axis, scale = integer(node, "axis"), value_of(node.inputs[1]).reshape(-1)
    zeros = np.broadcast_to(value_of(node.inputs[2]).reshape(-1), scale.shape).tolist()
    bits = 32 if is_wide(node) else width_of(node)
    shape = [1] * codes.ndim
    if axis >= 0:
        shape[axis] = -1
    real = (codes.astype(np.float32) - zero_point.astype(np.float32)) * scale.reshape(shape)
    constant = build.constant(str(node.inputs[0].name), real.astype(np.float32))  # type: ignore[union-attr]
    build.replace(node, constant)
    low = 0 if integer(node, "low") >= 0 else -(2 ** (bits - 1))
    return encoding(str(constant.name), bits, low, scale.tolist(), zeros)


def _unique(encodings: list[Encoding]) -> tuple[Encoding, ...]:
    """One for each constant: equal constants are stored once."""
    return tuple({each.name: each for each in encodings}.values())
