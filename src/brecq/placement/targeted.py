"""What a target asks of a placement: legal widths for every layer, and quantizers for all that its kernels write.

A network is learned with them from the start, so that the network that is learned is the one that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from brecq.errors import ConfigError
from brecq.graph import ops
from brecq.graph.integer import clamped_end, operands, operator_of
from brecq.targets import WIDE, Kernel, Target, taking
from brecq.targets.table import FLOAT

Widths = tuple[int, int]


@dataclass(frozen=True)
class Fitted:
    """Legal widths of a layer (weights, activations), the kernel for them, and why they are not what was asked for."""

    widths: Widths
    kernel: Kernel | None
    reason: str = ""


def fit(target: Target, layer: Node, asked: Widths) -> Fitted:
    """The narrowest legal widths that are at least what is asked for; float where the target has no such kernel."""
    kind = layer_kind(layer)
    found = target.nearest(kind, *asked)
    if asked == (FLOAT, FLOAT):
        return Fitted(asked, None)
    if found is None:
        why = f"{target.name} has no kernel for {kind} at {_text(asked)}"
        if asked[1] == WIDE and target.wide is not None:
            why = f"{target.name} gives a whole network 16-bit activations (activations=16), not one {kind}"
        return Fitted((FLOAT, FLOAT), None, why)
    reason = "" if found == asked else f"{target.name} computes {kind} at {_text(found)}, not {_text(asked)}"
    return Fitted(found, target.kernel(kind, *found), reason)


def layer_kind(layer: Node) -> str:
    """The kind of a layer for tables of targets: `conv2d`, `depthwise_conv2d`, `linear`, ..."""
    kind = str(ops.kind(layer))
    weight: Any = layer.args[1]
    if not kind.startswith("conv") or kind.startswith("conv_transpose"):
        return kind
    groups: Any = layer.args[6] if len(layer.args) > 6 else 1
    return f"depthwise_{kind}" if groups > 1 and weight.meta["val"].shape[1] == 1 else kind


def check_general(target: Target, kinds: Collection[str], asked: Widths) -> None:
    """Raise `ConfigError` if no layer of a network can have the widths that are asked for in general."""
    wanted = [width for width in asked if width != FLOAT]
    if not kinds or not wanted or any(target.kernel(kind, *asked) for kind in kinds):
        return
    legal = sorted({pair for kind in kinds for pair in target.widths(kind)})
    some = ", ".join(_text(pair) for pair in legal if pair[0] >= asked[0])[:160] or "none of its layers at all"
    others = f"; targets with 16-bit activations: {', '.join(taking(WIDE))}" if asked[1] == WIDE else ""
    raise ConfigError(f"{target.name} computes no layer of this network at {_text(asked)}; it takes {some}{others}")


def _text(widths: Widths) -> str:
    return "/".join("float" if width == FLOAT else str(width) for width in widths) + " bits (weights/activations)"


def tensors_of_kernels(
    graph: GraphModule,
    target: Target,
    kernels: dict[Node, Kernel],
    quantized: Collection[Node],
    sources: Callable[[Node], list[Node]],
) -> tuple[list[Node], list[list[Node]]]:
    """What the target's kernels need quantized besides `quantized`, and which tensors share a grid.

    Args:
        kernels: of the layers that have one. sources: the tensors to quantize so that one is.
    """
    wanted: set[Node] = set()
    same: list[list[Node]] = []

    def want(tensor: Node) -> list[Node]:
        found = sources(tensor)
        wanted.update(found)
        if len(found) > 1:  # a concatenation: one grid, so that the whole is on it
            same.append(found)
        return found

    if target.outputs:
        for result in next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes:
            want(result)
    for node in reversed(graph.graph.nodes):
        if node.op == "placeholder" and target.inputs:
            wanted.add(node)
        if node.op != "call_function":
            continue
        end = clamped_end(node)
        read = end in wanted or node in wanted or end in quantized
        if node in kernels:
            if read or not kernels[node].writes_float:
                wanted.add(end)
            continue
        name = operator_of(node)
        rule = None if name is None else target.operators.get(name)
        if rule is None or not read:
            continue
        wanted.add(end)
        needed = [each for operand in _to_quantize(rule, node, kernels) for each in want(operand)]
        if rule == "same":
            same.append([*needed, end])
    found = [node for node in graph.graph.nodes if node in wanted and node not in quantized and _is_float(node)]
    return found, same


def _to_quantize(rule: str, node: Node, kernels: dict[Node, Kernel]) -> list[Node]:
    """The operands that need a grid: for `residual` not the last layer, whose kernel adds the others to its sums."""
    found = operands(node)
    own = [each for each in found if each in kernels and len(each.users) == 1] if rule == "residual" else []
    return [each for each in found if not own or each is not own[-1]]


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
