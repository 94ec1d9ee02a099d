"""ExecuTorch: a `.pte` program for the XNNPACK delegate, with int8 convolutions and 8- or 4-bit linear layers.

XNNPACK has its own demands. Activations are int8. Operators that only move data need a quantizer behind them, or they
part two delegated regions. Convolutions take 8-bit weights, whatever their range; linear layers take 4-bit ones if
those are symmetric, and 8-bit ones otherwise. Layers whose weights are stored wider than they were quantized compute
the same numbers.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from torch.fx import GraphModule, Node

from brecq.checkpoint.tensors import PackedWeight, collect_tensors
from brecq.converted.grids import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE, Grid, grid_of, quantized_as
from brecq.deploy.complete import complete, require_activations
from brecq.deploy.executorch_runtime import Session
from brecq.deploy.formats import Exported, some
from brecq.deploy.outputs import order_note
from brecq.deploy.samples import fixed
from brecq.errors import ExportError, first_line
from brecq.graph import ops
from brecq.graph.fold import add_constant
from brecq.storage.files import write as write_file

if TYPE_CHECKING:
    from brecq.result import QuantResult


def write(result: QuantResult, path: Path, *, batch: int | None = None) -> Exported:
    """Write a result as a `.pte` file.

    Args:
        batch: the batch size of the program, which is fixed: 1 by default, where samples do not know of each other.

    Raises:
        ConfigError: `batch` is below 1. ExportError: as `brecq.export`; also for results with float activations, for
            networks that XNNPACK does not take as a whole (the message names the operators), and where the samples of
            a batch are mixed and no `batch` says of how many.
    """
    require_activations(result, "XNNPACK computes on integer activations", "ONNX or OpenVINO")
    completed = complete(result, linear_outputs=True, fold_clamps=False)
    _refuse_narrow_activations(completed.graph)
    size, mixed = fixed(completed, batch, "ExecuTorch")
    narrow, wide = prepare(completed.graph)
    inputs = tuple(value[:1].repeat(size, *[1] * (value.dim() - 1)) for value in completed.example_inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            program = torch.export.export(completed.graph, inputs, strict=False)
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            left = _left_outside(edge)
            buffer = bytes(edge.to_executorch().buffer)
        except Exception as error:  # the partitioner raises many types
            raise ExportError(
                f"XNNPACK does not take this network: {first_line(error)}; export it to ONNX or OpenVINO"
            ) from error
        finally:
            logging.disable(level)
    try:
        Session(buffer)
    except ExportError as error:
        raise ExportError(f"{error}, so XNNPACK does not take this network; export it to ONNX or OpenVINO") from error
    write_file(path, buffer, ExportError)
    notes = [f"batch size {size}", *mixed, f"{narrow} linear layers at 4 bits, {wide} layers at 8 bits"]
    notes += order_note(completed)
    if left:
        notes.append(f"outside XNNPACK, in ExecuTorch's portable kernels: {', '.join(sorted(left))}")
    return Exported(path, (path,), path.stat().st_size, tuple(notes))


def _refuse_narrow_activations(graph: GraphModule) -> None:
    narrow = [node for node in graph.graph.nodes if node.target is QUANTIZE and not grid_of(node).whole]
    if narrow:
        names = some([str(node.args[0]) for node in narrow])
        raise ExportError(
            f"XNNPACK's activations have 8 bits, and {len(narrow)} have fewer here ({names}); quantize with "
            "--activation-bits 8, or export to ONNX or OpenVINO"
        )


def prepare(graph: GraphModule) -> tuple[int, int]:
    """Rewrite a completed program as XNNPACK recognizes it; how many weights take 4 and how many 8 bits."""
    for node in list(graph.graph.nodes):
        if node.target is QUANTIZE:
            _sign(node)
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and ops.moves(node) and ops.is_tensor(node):
            _requantize(graph, node)
    counts = _weights(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return counts


def _sign(quantizer: Node) -> None:
    """uint8 codes to int8 codes, 128 lower."""
    grid = grid_of(quantizer)
    if grid.dtype is not torch.uint8:
        return
    arguments = Grid(grid.scale, grid.zero_point - 128, -128, 127, torch.int8).arguments()
    quantizer.args = (quantizer.args[0], *arguments)
    for dequantizer in list(quantizer.users):
        dequantizer.args = (quantizer, *arguments)


def _requantize(graph: GraphModule, node: Node) -> None:
    """Quantize what a movement operator passes on, on the grid that it came with."""
    grid = quantized_as(node.args[0])
    if grid is None or any(user.target is QUANTIZE for user in node.users):
        return
    readers = list(node.users)
    with graph.graph.inserting_after(node):
        codes = graph.graph.call_function(QUANTIZE, (node, *grid.arguments()))
    with graph.graph.inserting_after(codes):
        value = graph.graph.call_function(DEQUANTIZE, (codes, *grid.arguments()))
    codes.meta["val"], value.meta["val"] = node.meta["val"].to(grid.dtype), node.meta["val"]
    for reader in readers:
        reader.replace_input_with(node, value)


@torch.no_grad()
def _weights(graph: GraphModule) -> tuple[int, int]:
    stored = collect_tensors(graph)
    counts = {4: 0, 8: 0}
    for node in list(graph.graph.nodes):
        source: Any = node.args[0] if node.target in (DEQUANTIZE, DEQUANTIZE_CHANNELS) else None
        if source is None or source.op != "get_attr":
            continue
        name = str(source.target)
        value = stored[name]
        if not isinstance(value, PackedWeight):
            node.replace_all_uses_with(add_constant(graph, f"{name}_value", value.dequantize(), node))
            continue
        linear = all(ops.kind(user) == "linear" for user in node.users)
        bits = 4 if linear and value.bits <= 4 and not value.zero_point.any() else 8
        shape = [-1 if axis == value.axis else 1 for axis in range(len(value.shape))]
        centred = value.codes().to(torch.int16) - value.zero_point.reshape(shape)
        if int(centred.abs().max()) > 127:
            raise ExportError(
                f"{name} is asymmetric at 8 bits, which has no int8 kernel; quantize with --weight-scheme symmetric"
            )
        scale = value.scale.expand(value.shape[value.axis or 0])
        codes = add_constant(graph, f"{name}_codes", centred.to(torch.int8), node)
        steps = add_constant(graph, f"{name}_scale", scale.contiguous(), node)
        zeros = add_constant(graph, f"{name}_zeros", torch.zeros(len(scale), dtype=torch.int64), node)
        low, high = (-8, 7) if bits == 4 else (-127, 127)
        with graph.graph.inserting_before(node):
            arguments = (codes, steps, zeros, value.axis or 0, low, high, torch.int8)
            new = graph.graph.call_function(DEQUANTIZE_CHANNELS, arguments)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        counts[bits] += 1
    return counts[4], counts[8]


def _left_outside(edge: Any) -> set[str]:
    """Operators that the delegate did not take, without those that every program has."""
    nodes = edge.exported_program().graph.nodes
    names = {getattr(node.target, "_name", ops.op_name(node)) for node in nodes if node.op == "call_function"}
    return names - {"getitem", "executorch_call_delegate"}
