"""Rewrites of a program that change nothing it computes: equal operators merged, pooling named, clamps folded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from brecq.converted.grids import DEQUANTIZE, QUANTIZE, Grid, constant, grid_of
from brecq.graph import ops
from brecq.graph.integer import CLAMPS, THREE, computes_on_codes

aten = ops.aten

_HOISTED = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.permute.default,
    aten.transpose.int, aten.t.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, aten.contiguous.default, aten.clone.default, aten.max_pool1d.default,
    aten.max_pool2d.default,
}  # fmt: skip
"""Operators that a quantizer may be put in front of: elements of their input reach the output unchanged."""


def gather_quantizers(module: GraphModule) -> None:
    """Put quantizers where integer kernels have theirs: right behind the operator that computes, and one a grid.

    A quantizer behind data that is only moved is put in front of the movement, which it commutes with (with a maximum
    too: quantizing is monotone). Of several that put a tensor on the same grid, one is kept.
    """
    for node in list(module.graph.nodes):
        quantizer = node
        while quantizer.target is QUANTIZE and _only_moves(quantizer.args[0], quantizer):
            quantizer = _hoist(module, quantizer)
    for node in list(module.graph.nodes):
        first: dict[Grid, Node] = {}
        for user in [user for user in node.users if user.target is QUANTIZE]:
            kept = first.setdefault(grid_of(user), user)
            if kept is not user:
                user.replace_all_uses_with(kept)
                module.graph.erase_node(user)


def merge_equal(module: GraphModule) -> None:
    """Compute once what the network's code computes twice, an activation function for each of two branches say.

    Exporters merge such operators, quantizers among them; merged here, all see the same quantizers.
    """
    first: dict[str, Node] = {}
    names: dict[Node, str] = {}
    for node in list(module.graph.nodes):
        names[node] = node.name
        if node.op == "get_attr":
            names[node] = _content(constant(module, node))
        elif node.op == "call_function" and not ops.is_random(node):
            arguments = torch.fx.map_arg((node.args, node.kwargs), names.__getitem__)
            kept = first.setdefault(f"{node.target}{arguments}", node)
            if kept is not node:
                node.replace_all_uses_with(kept)
                module.graph.erase_node(node)


def _content(value: Tensor) -> str:
    """What tells a constant from all others: those of a layer that is called twice are stored twice."""
    digest = hashlib.sha256(value.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
    return f"{value.dtype}{tuple(value.shape)}{digest}"


def _only_moves(moved: Node, quantizer: Node) -> bool:
    if moved.target not in _HOISTED or list(moved.users) != [quantizer]:
        return False
    source: Any = moved.args[0]
    return list(source.users) == [moved] and source.target is not DEQUANTIZE


def _hoist(module: GraphModule, quantizer: Node) -> Node:
    """`source → movement → quantize → dequantize` becomes `source → quantize → dequantize → movement`."""
    moved: Any = quantizer.args[0]
    source = moved.args[0]
    dequantizers = list(quantizer.users)
    with module.graph.inserting_before(moved):
        before = module.graph.call_function(QUANTIZE, (source, *quantizer.args[1:]))
        behind = module.graph.call_function(DEQUANTIZE, (before, *quantizer.args[1:]))
    if "val" in source.meta:
        before.meta["val"] = source.meta["val"].to(grid_of(quantizer).dtype)
        behind.meta["val"] = source.meta["val"]
    moved.replace_input_with(source, behind)
    for dequantizer in dequantizers:
        dequantizer.replace_all_uses_with(moved)
        module.graph.erase_node(dequantizer)
    module.graph.erase_node(quantizer)
    return before


def name_means(module: GraphModule) -> None:
    """Spell every mean over all of height and width as global average pooling (and a flattening)."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is aten.mean.dim and computes_on_codes(node):
            flat = node.meta["val"].dim() == 2
        elif node.target is aten.avg_pool2d.default and _covers(node):
            flat = False
        else:
            continue
        source: Any = node.args[0]
        with graph.inserting_before(node):
            pool = graph.call_function(aten.adaptive_avg_pool2d.default, (source, [1, 1]))
            pool.meta = dict(node.meta)
            pool.meta["val"] = aten.adaptive_avg_pool2d.default(source.meta["val"], [1, 1])
        if not flat:
            node.replace_all_uses_with(pool)
        else:
            _flatten_behind(graph, node, pool)
        graph.erase_node(node)


def _flatten_behind(graph: torch.fx.Graph, mean: Node, pool: Node) -> None:
    """Put the flattening behind the quantizer of a mean, so that the quantizer follows the pooling directly."""
    quantizers = [user for user in mean.users if user.target is QUANTIZE]
    ends = [(user, list(user.users)) for user in quantizers]
    for quantizer, dequantizers in ends:
        quantizer.replace_input_with(mean, pool)
        quantizer.meta["val"] = pool.meta["val"].to(grid_of(quantizer).dtype)
        for dequantizer in dequantizers:
            dequantizer.meta["val"] = pool.meta["val"]
            _flatten(graph, dequantizer, mean.meta)
    if mean.users:
        flat = _flatten(graph, pool, mean.meta)
        mean.replace_all_uses_with(flat)


def _flatten(graph: torch.fx.Graph, node: Node, meta: dict[str, Any]) -> Node:
    readers = list(node.users)
    with graph.inserting_after(node):
        flat = graph.call_function(aten.flatten.using_ints, (node, 1))
    flat.meta = {key: value for key, value in meta.items() if key in ("val", "nn_module_stack")}
    for reader in readers:
        if reader is not flat and reader.target is not QUANTIZE:
            reader.replace_input_with(node, flat)
    return flat


def _covers(pool: Node) -> bool:
    """True for an average pooling whose one window is the whole picture."""
    source: Any = pool.args[0]
    height, width = source.meta["val"].shape[-2:]
    kernel = list(pool.args[1])  # type: ignore[arg-type]
    padding = list(pool.args[3]) if len(pool.args) > 3 else [0]  # type: ignore[arg-type]
    return (kernel * 2)[:2] == [height, width] and not any(padding) and len(pool.args) < 7


def spell_pads(module: GraphModule, modes: Collection[str]) -> None:
    """Spell paddings with elements of their own input as pieces of it, one behind the other: codes stay codes.

    Args:
        modes: `reflect`, `replicate`, `circular`.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target not in ops.PADS or (mode := ops.padding(node.target, node.args[1:])[0]) not in modes:
            continue
        amounts, x = ops.sides(node.args[1]), node.args[0]
        if min(map(min, amounts)) < 0:
            continue
        for dim, (before, after) in enumerate(amounts, node.meta["val"].dim() - len(amounts)):
            if before or after:
                x = _padded(graph, node, x, dim, (mode, before, after))
        node.replace_all_uses_with(x)
        graph.erase_node(node)


def _padded(graph: torch.fx.Graph, node: Node, x: Any, dim: int, how: tuple[str, int, int]) -> Node:
    with graph.inserting_before(node):
        pieces = [
            graph.call_function(aten.slice.Tensor, (x, dim, *run)) for run in _runs(*how, x.meta["val"].shape[dim])
        ]
        whole = graph.call_function(aten.cat.default, (pieces, dim))
    for piece in pieces:
        piece.meta = {**node.meta, "val": aten.slice.Tensor(x.meta["val"], *piece.args[1:])}
    whole.meta = {**node.meta, "val": aten.cat.default([piece.meta["val"] for piece in pieces], dim)}
    return whole


def _runs(mode: str, before: int, after: int, length: int) -> list[tuple[int, int]]:
    """A padded dimension as ranges of its own indices."""
    last = length - 1
    if mode == "circular":
        ranges = [(length - before, length), (0, length), (0, after)]
    elif mode == "replicate":
        ranges = [*[(0, 1)] * before, (0, length), *[(last, length)] * after]
    else:
        turned = [*range(before, 0, -1)], [*range(last - 1, last - 1 - after, -1)]
        starts, ends = ([(index, index + 1) for index in side] for side in turned)
        ranges = [*starts, (0, length), *ends]
    return [(start, end) for start, end in ranges if end > start]


def fold_clamps(module: GraphModule) -> None:
    """Let quantizers do the clamps (ReLU, ReLU6, ...) in front of them.

    Quantizing is monotone, so quantize(clamp(x, a, b)) = clamp(quantize(x), quantize(a), quantize(b)): the clamp
    becomes a narrower range of codes. A clamp behind a dequantizer stays: it has no kernel to disappear into.
    """
    for quantizer in list(module.graph.nodes):
        if quantizer.target is not QUANTIZE:
            continue
        while (clamp := foldable_clamp(quantizer.args[0])) is not None:
            bounds = clamp_bounds(clamp)
            assert bounds is not None
            grid = _narrowed(grid_of(quantizer), *bounds)
            quantizer.args = (clamp.args[0], *grid.arguments())
            for dequantizer in list(quantizer.users):
                dequantizer.args = (quantizer, *grid.arguments())
            module.graph.erase_node(clamp)


def foldable_clamp(node: Any) -> Node | None:
    """`node`, if it is a clamp that the quantizer behind it can do."""
    if node.target not in CLAMPS or len(node.users) != 1 or clamp_bounds(node) is None:
        return None
    source: Any = node.args[0]
    return None if source.target is DEQUANTIZE or source.op == "placeholder" else node


def multiply_hardswish(module: GraphModule) -> None:
    """Spell hardswish of codes as their product with a clamp of them on another grid, where the step divides 3.

    With r steps in 3, clamp(x + 3, 0, 6) / 6 is clamp(code, z - r, z + r) on the grid with step 1 / 2r and zero point
    z - r.
    """
    graph = module.graph
    for node in list(graph.nodes):
        source: Any = node.args[0] if node.target is aten.hardswish.default else None
        if source is None or source.target is not DEQUANTIZE or any(u.target is not QUANTIZE for u in node.users):
            continue
        grid = grid_of(source)
        steps = round(THREE / grid.scale)
        lowest = grid.zero_point - steps
        if abs(steps * grid.scale / THREE - 1) > 1e-6 or lowest < torch.iinfo(grid.dtype).min:
            continue
        low, high = max(lowest, grid.low), min(grid.zero_point + steps, grid.high)
        if low > high:
            continue
        gate = Grid(float(torch.tensor(1 / (2 * steps))), lowest, low, high, grid.dtype)
        with graph.inserting_before(node):
            codes = graph.call_function(aten.clamp.default, (source.args[0], low, high))
            value = graph.call_function(DEQUANTIZE, (codes, *gate.arguments()))
            product = graph.call_function(aten.mul.Tensor, (source, value))
        codes.meta = {**node.meta, "val": source.args[0].meta["val"]}
        value.meta = product.meta = dict(node.meta)
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def clamp_bounds(node: Node) -> tuple[float, float] | None:
    """Lower and upper bound of a clamp; `None` where they are tensors."""
    if node.target is aten.relu.default:
        return 0.0, math.inf
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    if node.kwargs:
        return None
    low, high = [*node.args[1:3], None, None][:2]
    if node.target is aten.hardtanh.default:
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    if isinstance(low, Node) or isinstance(high, Node):
        return None
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)  # type: ignore[arg-type]


def _narrowed(grid: Grid, low: float, high: float) -> Grid:
    def code(value: float) -> int:
        bounded = torch.tensor(value, dtype=torch.float32) * (1.0 / torch.tensor(grid.scale, dtype=torch.float32))
        return int(torch.clamp(torch.round(bounded) + grid.zero_point, grid.low, grid.high))

    return replace(grid, low=code(low), high=code(high))
