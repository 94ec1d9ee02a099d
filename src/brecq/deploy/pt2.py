"""The format `pt2`: a `torch.export` program with packed weights and no float copies of them.

Weights below 8 bits are uint8 buffers that hold several codes a byte; shifts and masks in the program unpack them, and
subtract their zero points, so that what is dequantized is an int8 weight with zero point 0. Biases are float32 (they
take the same space as int32, without scales). `torch.export.load` and PyTorch are all that a reader needs.

On x86, `compile_x86` lowers the program to the int8 convolutions and linear layers of oneDNN.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from brecq.checkpoint.tensors import PackedWeight, collect_tensors
from brecq.deploy.complete import Completed, as_converted, complete
from brecq.deploy.files import replacing
from brecq.deploy.formats import Exported
from brecq.deploy.grids import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE, Grid, grid_of
from brecq.deploy.planes import pack_plane, plane_widths
from brecq.errors import ExportError
from brecq.graph.convert import to_program
from brecq.graph.fold import add_constant, fold_constants, get_tensor
from brecq.graph.ops import aten

if TYPE_CHECKING:
    from brecq.result import QuantResult


def write(result: QuantResult, path: Path) -> Exported:
    """Write a result as a `.pt2` file.

    Raises:
        ExportError: as `brecq.export`.
    """
    completed = program_of(result)
    pack_weights(completed.graph)
    program = to_program(completed.graph, completed.example_inputs)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with temporary.open("wb") as file:
            torch.export.save(program, file)
    notes = ["weights are unpacked in every call; brecq.deploy.pt2.compile_x86 unpacks them once"]
    if completed.added:
        names = ", ".join(dict.fromkeys(each.layer or each.tensor for each in completed.added[:4]))
        more = f", … ({len(completed.added)} in all)" if len(completed.added) > 4 else ""
        notes.append(f"quantized to 8 bits in addition, as integer kernels need it: the outputs of {names}{more}")
    return Exported(path, (path,), path.stat().st_size, tuple(notes))


def load(path: Path | str) -> ExportedProgram:
    """The program of a `.pt2` file; `load(path).module()` runs it.

    Raises:
        ExportError: the file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:  # torch raises many unrelated types
        raise ExportError(f"cannot load {path}: {error}; give a file that brecq export --format pt2 wrote") from error


def compile_x86(path: Path | str) -> Callable[..., Any]:
    """The program of a `.pt2` file, lowered to int8 kernels by `torch.compile` (x86, needs a C++ compiler).

    What is fused: every convolution and linear layer with a quantized input, with the activation function, the residual
    addition and the quantizer behind it. What is not: pooling, concatenation, attention, which run in float on
    dequantized values.

    Call the result under `torch.no_grad()`; the first call compiles, and so does the first with another batch size.

    Raises:
        ExportError: the file cannot be read, or has asymmetric 8-bit weights, whose zero points oneDNN's kernels ignore.
    """
    import torch._inductor.config as settings
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401 (registers the fusions)

    graph = load(path).module()
    assert isinstance(graph, GraphModule)
    _refuse_zero_points(graph)
    fold_constants(graph)
    compiled = torch.compile(graph)

    def run(*inputs: Any) -> Any:
        with settings.patch(freezing=True), torch.no_grad():
            return compiled(*inputs)

    return run


def program_of(result: QuantResult) -> Completed:
    """The completed program whose quantizers all have whole ranges; the converted one where only weights are quantized.

    A quantizer with fewer codes is a clamp and a quantizer with all: kernels know the range of their type only.
    """
    graph = result.converted
    assert isinstance(graph, GraphModule)
    if not any(node.target is QUANTIZE for node in graph.graph.nodes):
        return as_converted(result)
    completed = complete(result, fold_clamps=False)
    for node in list(completed.graph.graph.nodes):
        if node.target is QUANTIZE:
            _widen(completed.graph, node)
    completed.graph.recompile()
    return completed


def _widen(graph: GraphModule, quantizer: Node) -> None:
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
    for dequantizer in quantizer.users:
        dequantizer.args = (quantizer, *whole)


@torch.no_grad()
def pack_weights(graph: GraphModule) -> None:
    """Replace integer weights by packed buffers and the operators that unpack them, integer biases by float ones."""
    stored = collect_tensors(graph)
    built: dict[str, Node] = {}
    for node in list(graph.graph.nodes):
        source: Any = node.args[0] if node.target in (DEQUANTIZE, DEQUANTIZE_CHANNELS) else None
        if source is None or source.op != "get_attr":
            continue
        name = str(source.target)
        if name not in built:
            value = stored[name]
            if not isinstance(value, PackedWeight):
                assert not isinstance(value, Tensor)
                built[name] = add_constant(graph, f"{name}_value", value.dequantize(), node)
            else:
                built[name] = _unpacked(graph, name, value, node)
            built[name].meta["val"] = node.meta["val"]
        node.replace_all_uses_with(built[name])
    graph.graph.eliminate_dead_code()
    clean = GraphModule(graph, graph.graph)  # takes over only the constants that the graph reads
    graph.__dict__.update(clean.__dict__)
    graph.recompile()


def _unpacked(graph: GraphModule, name: str, weight: PackedWeight, before: Node) -> Node:
    """The operators that make the float weight of its packed codes."""
    wide = weight.bits == 8 and bool(weight.zero_point.any())
    if weight.bits == 8:
        codes = add_constant(graph, f"{name}_codes", weight.codes(), before)
    else:
        codes = _centred(graph, name, weight, before)
    zero_point = weight.zero_point if wide else torch.zeros_like(weight.zero_point, dtype=torch.int8)
    info = torch.iinfo(torch.int8)
    carrier = (info.min, info.max, torch.int8) if weight.low < 0 or not wide else (0, 255, torch.uint8)
    if weight.axis is None:
        arguments: tuple[Any, ...] = (float(weight.scale), int(zero_point), *carrier)
        operator: Any = DEQUANTIZE
    else:
        zeros = add_constant(graph, f"{name}_zeros", zero_point, before)
        scale = add_constant(graph, f"{name}_scale", weight.scale, before)
        arguments, operator = (scale, zeros, weight.axis, *carrier), DEQUANTIZE_CHANNELS
    with graph.graph.inserting_before(before):
        return graph.graph.call_function(operator, (codes, *arguments))


def _centred(graph: GraphModule, name: str, weight: PackedWeight, before: Node) -> Node:
    """int8 codes minus zero point, of the shape of the weight."""
    shape = list(weight.shape)
    flat = (weight.codes().to(torch.int16) - weight.low).reshape(-1).numpy().astype("uint8")
    total: Node | None = None
    position = 0

    def call(operator: Any, *arguments: Any) -> Node:
        with graph.graph.inserting_before(before):
            return graph.graph.call_function(operator, arguments)

    for width in plane_widths(weight.bits):
        plane = torch.from_numpy(pack_plane((flat >> position) & (2**width - 1), width))
        stored = add_constant(graph, f"{name}_bits{position}", plane[:, None], before)
        shifts = add_constant(graph, f"shifts{width}", torch.arange(0, 8, width, dtype=torch.uint8), before)
        part = call(aten.bitwise_and.Scalar, call(aten.bitwise_right_shift.Tensor, stored, shifts), 2**width - 1)
        part = call(aten.slice.Tensor, call(aten.reshape.default, part, [-1]), 0, 0, len(flat))
        if position:
            part = call(aten.bitwise_left_shift.Tensor_Scalar, part, position)
        total = part if total is None else call(aten.bitwise_or.Tensor, total, part)
        position += width
    codes = call(aten._to_copy.default, call(aten.reshape.default, total, shape))
    codes.kwargs = {"dtype": torch.int8}
    offset = (weight.zero_point - weight.low).to(torch.int8)
    if weight.axis is not None:
        offset = offset.reshape([-1 if axis == weight.axis else 1 for axis in range(len(shape))])
    return call(aten.sub.Tensor, codes, add_constant(graph, f"{name}_zero_point", offset, before))


def _refuse_zero_points(graph: GraphModule) -> None:
    bad = [
        str(node.args[0].target)
        for node in graph.graph.nodes
        if node.target is DEQUANTIZE_CHANNELS and node.args[2].op == "get_attr"
        if bool(get_tensor(graph, str(node.args[2].target)).any())
    ]
    if bad:
        raise ExportError(
            f"asymmetric 8-bit weights ({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}): oneDNN's kernels ignore "
            "their zero points; quantize with --weight-scheme auto or symmetric"
        )
