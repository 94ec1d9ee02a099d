"""Completion: a converted program gets the quantizers that an integer runtime needs and reconstruction leaves out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from brecq.converted import rewrite
from brecq.converted.grids import DEQUANTIZE, QUANTIZE, Grid, constant, grid_of
from brecq.converted.plan import float_operators, tensors_to_complete
from brecq.converted.ranges import constant_grid, resolve
from brecq.deploy.biases import quantize_biases
from brecq.deploy.program import program_of
from brecq.errors import ExportError
from brecq.graph import ops
from brecq.graph.integer import THREE
from brecq.placement.quantizer import activation_scheme
from brecq.placement.returned import return_inputs
from brecq.quant import ranges
from brecq.quant.affine import IntRange

if TYPE_CHECKING:
    from brecq.result import QuantResult


@dataclass(frozen=True)
class Added:
    """A quantizer that completion added. `tensor` names the node, `layer` the module that made it."""

    tensor: str
    op: str
    layer: str
    grid: Grid


@dataclass(frozen=True)
class Completed:
    """A program ready for integer runtimes.

    Attributes:
        graph: the program. Weights are `dequantize_per_channel` (or `_per_tensor`) of int8 constants, biases of int32
            ones; activations pass `quantize_per_tensor` and `dequantize_per_tensor`, whose `quant_min` and
            `quant_max` hold the bits and any clamp that was folded in. Every node has its `val` in `meta`.
        inputs: names of the network's inputs, in order. example_inputs: a batch of two.
        added: what the converted program did not quantize.
    """

    graph: GraphModule
    inputs: tuple[str, ...]
    example_inputs: tuple[Tensor, ...]
    added: tuple[Added, ...]

    def quantizers(self) -> dict[str, Node]:
        """The quantizers of activations in program order, by a name that tells whose output each puts on a grid.

        A clamp that a quantizer can do is a part of it, whether it was folded or not."""
        found: dict[str, Node] = {}
        for node in self.graph.graph.nodes:
            if node.target is QUANTIZE:
                source: Any = node.args[0]
                while rewrite.foldable_clamp(source) is not None:
                    source = source.args[0]
                path = ops.module_path(source)
                base = f"{path}.{ops.op_name(source)}" if path else f"{source.name}.codes"
                name, count = base, 1
                while name in found:
                    count += 1
                    name = f"{base}#{count}"
                found[name] = node
        return found


def require_activations(result: QuantResult, need: str, instead: str) -> None:
    """Raise `ExportError` unless activations are quantized: `need` says what wants them, `instead` what does not."""
    graph = result.converted
    assert isinstance(graph, GraphModule)
    if not any(node.target is QUANTIZE for node in graph.graph.nodes):
        raise ExportError(
            f"{need}, and this result leaves them in float; quantize with --activation-bits 8, or export to {instead}"
        )


def has_wide(graph: Any) -> bool:
    """True if a converted program has activations of 16 bits."""
    return any(node.target is QUANTIZE and grid_of(node).dtype is torch.int16 for node in graph.graph.nodes)


def complete(
    result: QuantResult, *, linear_outputs: bool = False, fold_clamps: bool = True, products: bool = False
) -> Completed:
    """The completed program of a result; the result is left as it is.

    To what was learned for a target nothing is added: all that its kernels need is learned. Neither is anything beside
    16-bit activations, whose runtimes are targets: 8 bits there would cost what the others are for.

    Args:
        linear_outputs: also quantize what linear layers leave in float.
        fold_clamps: let quantizers take over the ReLU, ReLU6 and other clamps in front of them.
        products: spell hardswish as a product of codes, for runtimes that have no kernel for it.

    Raises:
        ExportError: the result holds no ranges to complete it with.
    """
    graph = program_of(result)
    rewrite.gather_quantizers(graph)
    settled = result.config.target is not None or has_wide(graph)
    nodes = [] if settled else tensors_to_complete(graph, linear_outputs=linear_outputs)
    grids = resolve(graph, result.ranges or [])
    signed = activation_scheme(result.config) == "signed"
    grids |= {node: constant_grid(constant(graph, node), signed) for node in nodes if node.op == "get_attr"}
    grids |= {node: _dividing(grids[node]) for node in nodes if node in grids and _is_hardswished(node)}
    missing = [node for node in nodes if node not in grids]
    if missing:
        raise ExportError(
            f"no range was recorded for {describe(missing[0])} and {len(missing) - 1} other tensors that the "
            "reconstruction leaves in float; quantize again with this version of brecq, which records them"
        )
    added = tuple(_insert(graph, node, grids[node]) for node in nodes if not _reuse(graph, node))
    return_inputs(graph, lambda node: node.target in (QUANTIZE, DEQUANTIZE))
    rewrite.merge_equal(graph)
    rewrite.spell_pads(graph, ("circular",))
    rewrite.name_means(graph)
    if fold_clamps:
        rewrite.fold_clamps(graph)
    if products:
        rewrite.multiply_hardswish(graph)
    quantize_biases(graph)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return _completed(graph, result, added)


def as_converted(result: QuantResult) -> Completed:
    """The converted program without further quantizers, for what computes in any mixture of integers and floats."""
    graph = program_of(result)
    rewrite.spell_pads(graph, ("circular",))
    rewrite.name_means(graph)
    graph.graph.lint()
    graph.recompile()
    return _completed(graph, result, ())


def _completed(graph: GraphModule, result: QuantResult, added: tuple[Added, ...]) -> Completed:
    names = tuple(node.name for node in graph.graph.nodes if node.op == "placeholder")
    return Completed(graph, names, result.example_inputs, added)


def _is_hardswished(node: Node) -> bool:
    return any(user.target is ops.aten.hardswish.default for user in node.users)


def _dividing(grid: Grid) -> Grid:
    """A grid like this one on which hardswish is a product of codes."""
    range = IntRange(grid.low, grid.high)
    centred = grid.dtype is torch.int8
    scale, zero_point = ranges.dividing(THREE, grid.scale, grid.zero_point, range, centred=centred)
    return replace(grid, scale=scale, zero_point=zero_point)


def added_note(completed: Completed, target: str = "") -> tuple[str, ...]:
    """What was quantized in addition, and what to do about it, for a user; empty where nothing was.

    Args:
        target: the name of the one that the file is for, where there is one.
    """
    added = completed.added
    if not added:
        return ()
    names = ", ".join(dict.fromkeys(each.layer or each.tensor for each in added[:4]))
    more = f", … ({len(added)} in all)" if len(added) > 4 else ""
    learned = f"; quantizing with --target {target} learns them instead" if target else ""
    return (
        f"quantized to 8 bits in addition, as integer kernels need it: the outputs of {names}{more}; what that "
        f"changes is the completion that brecq verify shows{learned}",
    )


def float_note(completed: Completed) -> tuple[str, ...]:
    """What a runtime with the simulator's kernels computes in float, for a user; empty where that is nothing."""
    floats = sorted(float_operators(completed.graph))
    if not floats or not completed.quantizers():
        return ()
    return (
        f"computed in float: {', '.join(floats)}; whether the file is faster than the float network, brecq benchmark "
        "measures",
    )


def describe(node: Node) -> str:
    """`the output of conv2d in layer1.0.conv2`: where a tensor comes from, for messages."""
    path = ops.module_path(node)
    return f"the output of {ops.op_name(node)}{f' in {path}' if path else f' ({node.name})'}"


def _reuse(graph: GraphModule, node: Node) -> bool:
    """Let all read a tensor through an 8-bit quantizer that some read it through already."""
    for quantizer in node.users:
        if quantizer.target is QUANTIZE and grid_of(quantizer).whole:
            _route(graph, node, quantizer)
            return True
    return False


def _insert(graph: GraphModule, node: Node, grid: Grid) -> Added:
    with graph.graph.inserting_after(node):
        quantizer = graph.graph.call_function(QUANTIZE, (node, *grid.arguments()))
    quantizer.meta["val"] = node.meta["val"].to(grid.dtype)
    _route(graph, node, quantizer)
    return Added(node.name, ops.op_name(node), ops.module_path(node), grid)


def _route(graph: GraphModule, node: Node, quantizer: Node) -> None:
    """Everything that reads `node` reads it through `quantizer` from now on."""
    readers = [user for user in node.users if user is not quantizer]
    with graph.graph.inserting_after(quantizer):
        dequantizer: Any = graph.graph.call_function(DEQUANTIZE, (quantizer, *quantizer.args[1:]))
    dequantizer.meta = {key: value for key, value in node.meta.items() if key in ("val", "nn_module_stack")}
    for reader in readers:
        reader.replace_input_with(node, dequantizer)
