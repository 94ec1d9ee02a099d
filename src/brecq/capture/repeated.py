"""Layers of parameters: what a layer makes of a constant, repeated for each sample, is a constant, repeated.

    linear(query.repeat(N, 1, 1))   →   constant.expand(N, -1, -1)

Learned queries of detectors go through layers before they meet an activation (the first self-attention of DETR, the
mask embedder of Mask2Former). Such a layer computes the same for every picture: there is nothing to quantize in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from brecq.graph import ops
from brecq.graph.dataflow import constants
from brecq.graph.fold import add_constant, clean, get_tensor

aten = ops.aten


@torch.no_grad()
def fold_repeated(module: GraphModule) -> None:
    """Evaluate weighted operators whose inputs depend on parameters and the batch size only."""
    fixed = constants(module.graph)
    layers = [node for node in module.graph.nodes if node in fixed and ops.kind(node)]
    if not layers:
        return
    two, three = _values(module, 2), _values(module, 3)
    for layer in reversed(layers):  # what leads to a later one is gone with it
        if not layer.users or layer not in two or layer not in three:
            continue
        found = _one_of(two[layer], three[layer])
        size = None if found is None else _batch_size(module)
        if found is None or size is None:
            continue
        value, axis = found
        constant = add_constant(module, f"{ops.module_path(layer) or layer.name}_folded", value, layer)
        sizes: list[int | Node] = [-1] * value.dim()
        sizes[axis] = size
        with module.graph.inserting_before(layer):
            repeated = module.graph.call_function(aten.expand.default, (constant, sizes))
        repeated.meta = dict(layer.meta)
        layer.replace_all_uses_with(repeated)
        module.graph.eliminate_dead_code()
    clean(module)


def _one_of(two: Tensor, three: Tensor) -> tuple[Tensor, int] | None:
    """The value for one sample, and the axis that it is repeated along; `None` if it is none repeated."""
    grown = [axis for axis, sizes in enumerate(zip(two.shape, three.shape, strict=True)) if sizes[0] != sizes[1]]
    if len(grown) != 1 or (two.shape[grown[0]], three.shape[grown[0]]) != (2, 3):
        return None
    one = three.narrow(grown[0], 0, 1)
    alike = torch.allclose(one.expand_as(three), three, rtol=1e-5, atol=1e-6) and torch.allclose(
        one.expand_as(two), two, rtol=1e-5, atol=1e-6
    )
    return (one.contiguous().clone(), grown[0]) if alike else None


def _batch_size(module: GraphModule) -> Node | None:
    """The batch size, read off the first input at the start of the graph."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    source = _first(module)
    if source is None:
        return None
    known = (node for node in source.users if node.target is aten.sym_size.int and node.args == (source, 0))
    node = next(known, None)
    if node is None or inputs[-1].next is not node:
        with module.graph.inserting_after(inputs[-1]):
            node = module.graph.call_function(aten.sym_size.int, (source, 0))
        node.meta["val"] = source.meta["val"].shape[0]
    return node


def _first(module: GraphModule) -> Node | None:
    """The first input that is a batch."""
    inputs = (node for node in module.graph.nodes if node.op == "placeholder" and ops.is_tensor(node))
    return next((node for node in inputs if node.meta["val"].dim()), None)


def _values(module: GraphModule, batch: int) -> dict[Node, Any]:
    """Values of what depends on parameters and the batch size, for a batch of so many samples."""
    source = _first(module)
    symbol = None if source is None else str(source.meta["val"].shape[0])
    values: dict[Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = get_tensor(module, str(node.target))
        elif node.op == "call_function" and node.target is aten.sym_size.int:
            size = node.meta.get("val")
            if isinstance(size, int) or str(size) == symbol:
                values[node] = size if isinstance(size, int) else batch
        elif node.op == "call_function" and values.keys() >= set(node.all_input_nodes) and not ops.is_random(node):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    return values
