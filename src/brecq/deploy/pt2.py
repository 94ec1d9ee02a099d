"""The format `pt2`: a `torch.export` program with packed weights and no float copies of them.

Weights below 8 bits are uint8 buffers that hold several codes a byte; shifts and masks in the program unpack them, and
subtract their zero points, so that what is dequantized is an int8 weight with zero point 0. Biases are float32 (they
take the same space as int32, without scales). `torch.export.load` and PyTorch are all that a reader needs.

On x86, `brecq.deploy.pt2_runtime.compile_x86` lowers the program to int8 kernels.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from brecq.checkpoint.tensors import PackedWeight, collect_tensors
from brecq.converted.convert import to_program
from brecq.converted.grids import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE, Grid, grid_of
from brecq.deploy.complete import Completed, added_note, as_converted, complete, has_wide
from brecq.deploy.formats import Exported
from brecq.deploy.planes import pack_plane, plane_widths
from brecq.errors import ExportError
from brecq.graph.fold import add_constant
from brecq.graph.ops import aten
from brecq.storage.files import write as write_file

if TYPE_CHECKING:
    from brecq.result import QuantResult


DIGEST = "brecq.digest"
"""The extra file of a program that names the result it was exported from."""


def write(result: QuantResult, path: Path) -> Exported:
    """Write a result as a `.pt2` file.

    Raises:
        ExportError: as `brecq.export`.
    """
    completed = program_of(result)
    pack_weights(completed.graph)
    program = to_program(completed.graph, completed.example_inputs)
    for node in program.graph.nodes:  # where each operator came from takes more space than packed weights
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer, extra_files={DIGEST: result.digest()})
    write_file(path, buffer.getvalue(), ExportError)
    once = "" if has_wide(completed.graph) else "; brecq.deploy.pt2_runtime.compile_x86 unpacks them once"
    notes = [f"weights are unpacked in every call{once}"]
    notes += added_note(completed)
    return Exported(path, (path,), path.stat().st_size, tuple(notes))


def program_of(result: QuantResult) -> Completed:
    """The completed program with whole ranges in all quantizers; the converted one where weights alone are quantized.

    A quantizer with fewer codes is a clamp and a quantizer with all: kernels know the range of their type only.
    """
    graph = result.converted
    assert isinstance(graph, GraphModule)
    if not any(node.target is QUANTIZE for node in graph.graph.nodes):
        return as_converted(result)
    completed = complete(result, fold_clamps=False)
    for node in list(completed.graph.graph.nodes):
        if node.target is QUANTIZE:
            widen(completed.graph, node)
    _move_codes(completed.graph)
    return completed


_VIEWS = {
    aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int,
    aten.select.int, aten.slice.Tensor, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
}  # fmt: skip


def _move_codes(graph: GraphModule) -> None:
    """Rearrange codes instead of values: linear kernels are recognized right behind a dequantizer only."""
    for node in list(graph.graph.nodes):
        source: Any = node.args[0] if node.target in _VIEWS else None
        if source is None or source.target is not DEQUANTIZE:
            continue
        with graph.graph.inserting_before(node):
            codes = graph.graph.call_function(node.target, (source.args[0], *node.args[1:]), node.kwargs)
            value = graph.graph.call_function(DEQUANTIZE, (codes, *source.args[1:]))
        value.meta = dict(node.meta)
        node.replace_all_uses_with(value)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def widen(graph: GraphModule, quantizer: Node) -> None:
    """Let a quantizer of fewer codes than its type holds use all of them, and clamp in front of it."""
    grid = grid_of(quantizer)
    info = torch.iinfo(grid.dtype)
    if grid.whole:
        return
    source: Any = quantizer.args[0]
    low, high = ((code - grid.zero_point) * grid.scale for code in (grid.low, grid.high))
    with graph.graph.inserting_before(quantizer):
        clamped = graph.graph.call_function(aten.hardtanh.default, (source, low, high))
    clamped.meta = dict(source.meta)
    whole = Grid(grid.scale, grid.zero_point, info.min, info.max, grid.dtype).arguments()
    quantizer.args = (clamped, *whole)
    for dequantizer in list(quantizer.users):
        dequantizer.args = (quantizer, *whole)


@torch.no_grad()
def pack_weights(graph: GraphModule) -> None:
    """Replace integer weights by packed buffers and the operators that unpack them, integer biases by float ones."""
    stored = collect_tensors(graph)
    built: dict[str, Node] = {}
    build = _Builder(graph)
    for node in list(graph.graph.nodes):
        source: Any = node.args[0] if node.target in (DEQUANTIZE, DEQUANTIZE_CHANNELS) else None
        if source is None or source.op != "get_attr":
            continue
        name = str(source.target)
        if name not in built:
            value = stored[name]
            build.before = node
            if not isinstance(value, PackedWeight):
                assert not isinstance(value, Tensor)
                built[name] = build.constant(f"{name}_value", value.dequantize())
            else:
                built[name] = _unpacked(build, name, value)
            built[name].meta["val"] = node.meta["val"]
        node.replace_all_uses_with(built[name])
    graph.graph.eliminate_dead_code()
    clean = GraphModule(graph, graph.graph)  # takes over only the constants that the graph reads
    graph.__dict__.update(clean.__dict__)
    graph.recompile()


class _Builder:
    """Adds nodes in front of `before`, and constants, equal ones of up to 64 KiB once."""

    before: Node

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        self._names: dict[tuple[Any, ...], str] = {}

    def call(self, operator: Any, *arguments: Any, **options: Any) -> Node:
        with self.graph.graph.inserting_before(self.before):
            return self.graph.graph.call_function(operator, arguments, options)

    def constant(self, name: str, value: Tensor) -> Node:
        key = (value.dtype, tuple(value.shape), value.numpy().tobytes()) if value.nbytes <= 1 << 16 else (name,)
        if key in self._names:
            with self.graph.graph.inserting_before(self.before):
                return self.graph.graph.get_attr(self._names[key])
        node = add_constant(self.graph, name, value, self.before)
        self._names[key] = str(node.target)
        return node


def _unpacked(build: _Builder, name: str, weight: PackedWeight) -> Node:
    """The operators that make the float weight of its packed codes."""
    zero_point, low = torch.zeros_like(weight.zero_point), min(weight.low, -1)
    if weight.bits < 8:
        codes = _centred(build, name, weight)
    else:
        codes = build.constant(f"{name}_codes", weight.codes())
        zero_point, low = weight.zero_point, weight.low
    carrier = (-128, 127, torch.int8) if low < 0 else (0, 255, torch.uint8)
    if weight.axis is None:
        return build.call(DEQUANTIZE, codes, float(weight.scale), int(zero_point), *carrier)
    zeros = zero_point if zero_point.any() else zero_point.to(torch.int8)
    constants = (build.constant(f"{name}_scale", weight.scale), build.constant("zeros", zeros))
    return build.call(DEQUANTIZE_CHANNELS, codes, *constants, weight.axis, *carrier)


def _centred(build: _Builder, name: str, weight: PackedWeight) -> Node:
    """int8 codes minus zero point, of the shape of the weight."""
    shape = list(weight.shape)
    flat = (weight.codes().to(torch.int16) - weight.low).reshape(-1).numpy().astype("uint8")
    total: Node | None = None
    position = 0
    for width in plane_widths(weight.bits):
        packed = torch.from_numpy(pack_plane((flat >> position) & (2**width - 1), width))
        stored = build.constant(f"{name}_bits{position}", packed[:, None])
        shifts = build.constant(f"shifts{width}", torch.arange(0, 8, width, dtype=torch.uint8))
        part = build.call(
            aten.bitwise_and.Scalar, build.call(aten.bitwise_right_shift.Tensor, stored, shifts), 2**width - 1
        )
        if packed.numel() * (8 // width) != len(flat):
            part = build.call(aten.slice.Tensor, build.call(aten.reshape.default, part, [-1]), 0, 0, len(flat))
        if position:
            part = build.call(aten.bitwise_left_shift.Tensor_Scalar, part, position)
        part = build.call(aten.reshape.default, part, shape)
        total = part if total is None else build.call(aten.bitwise_or.Tensor, total, part)
        position += width
    codes = build.call(aten._to_copy.default, total, dtype=torch.int8)
    offset = (weight.zero_point - weight.low).to(torch.int8)
    if weight.axis is not None:
        offset = offset.reshape([-1 if axis == weight.axis else 1 for axis in range(len(shape))])
    return build.call(aten.sub.Tensor, codes, build.constant(f"{name}_zero_point", offset))
