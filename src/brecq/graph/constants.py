"""Constants of a graph: what depends on no activation is evaluated once, or is no activation where it needs sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from brecq.graph import ops
from brecq.graph.fold import add_constant, clean, get_tensor, set_tensor

aten = ops.aten

_TURNS = {aten.t.default, aten.permute.default, aten.transpose.int, aten.contiguous.default, aten.clone.default}
_LIKE: dict[Any, float] = {aten.zeros_like.default: 0, aten.new_zeros.default: 0, aten.ones_like.default: 1}
_LIKE |= {aten.new_ones.default: 1}


@torch.no_grad()
def constant_values(module: GraphModule) -> dict[Node, Any]:
    """Values of all nodes that depend on parameters, buffers and numbers only, fake-quantizers excepted."""
    values: dict[Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = get_tensor(module, str(node.target))
            if isinstance(value, Tensor):
                values[node] = value
            continue
        known = all(source in values for source in node.all_input_nodes)
        if known and node.op == "call_function" and not ops.is_random(node) and not ops.is_size(node):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    return values


@torch.no_grad()
def fold_constants(module: GraphModule) -> None:
    """Evaluate what depends on parameters, buffers and numbers only: standardized weights, positions, masks."""
    values = constant_values(module)
    first: dict[str, Node] = {}  # one constant for each thing that is computed, however often
    alike: dict[Node, Node] = {}
    for node in values:
        if node.op == "call_function":
            same = torch.fx.map_arg((node.args, node.kwargs), lambda n: alike.get(n, n))
            alike[node] = first.setdefault(f"{node.target}{same}", node)
    for node, original in alike.items():
        if original is not node:
            node.replace_all_uses_with(original)
    for node, value in values.items():
        if node.op == "call_function" and isinstance(value, Tensor) and any(user not in values for user in node.users):
            _replace(module, node, value.detach().clone())
    clean(module)


def _replace(module: GraphModule, node: Node, value: Tensor) -> None:
    origin = _turned(node)
    if origin is not None:  # the same numbers in another order keep their name
        set_tensor(module, str(origin.target), value.contiguous())
        origin.meta["val"] = value
        node.replace_all_uses_with(origin)
        return
    root = _root(node)
    name = str(root.target) if root is not None else ops.op_name(node)
    constant = add_constant(module, f"{name}_folded", value, node)
    constant.meta.update({k: v for k, v in node.meta.items() if k == "nn_module_stack"})
    node.replace_all_uses_with(constant)


def _turned(node: Node) -> Node | None:
    """The parameter that `node` only transposes, if nothing else reads it."""
    while node.op == "call_function" and node.target in _TURNS:
        source: Any = node.args[0]
        if len(source.users) != 1:
            return None
        node = source
    return node if node.op == "get_attr" else None


def _root(node: Node) -> Node | None:
    """The nearest parameter or buffer that a constant is computed from."""
    seen, queue = {node}, [node]
    while queue:
        current = queue.pop(0)
        if current.op == "get_attr":
            return current
        for source in current.all_input_nodes:
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return None


def spell_out_sizes(module: GraphModule) -> None:
    """What reads only the sizes or the type of a tensor says them itself: that needs no values of the tensor, so what
    is computed from it (anchors, masks) is no activation.

    zeros_like(x), x.new_full(sizes, f), ...        → full(sizes, f)
    y.type_as(x)                                    → y in that type
    y.expand_as(x), y.view_as(x), y.reshape_as(x)   → expand, reshape
    """
    for node in list(module.graph.nodes):
        spelled = _SPELLED.get(node.target) if isinstance(node.meta.get("val"), Tensor) else None
        if spelled is None or node.args[0].op == "get_attr":
            continue
        with module.graph.inserting_before(node):
            new = spelled(module, node)
        new.meta = new.meta or dict(node.meta)
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
    module.recompile()


def _filled(module: GraphModule, node: Node) -> Node:
    value, source = node.meta["val"], node.args[0]
    fill = _LIKE.get(node.target, node.args[-1])
    sizes = node.args[1] if "new_" in ops.op_name(node) else _sizes(module, source)
    options: dict[str, Any] = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
    return module.graph.call_function(aten.full.default, (sizes, fill), options)


def _typed(module: GraphModule, node: Node) -> Node:
    source: Any = node.args[0]
    value = node.meta["val"]
    before = source.meta["val"]
    if (before.dtype, before.device) == (value.dtype, value.device):
        return source
    device = {} if before.device == value.device else {"device": value.device}
    return module.graph.call_function(aten._to_copy.default, (source,), {"dtype": value.dtype, **device})


def _shaped(module: GraphModule, node: Node) -> Node:
    source, like = node.args
    target = aten.expand.default if node.target is aten.expand_as.default else aten.reshape.default
    return module.graph.call_function(target, (source, _sizes(module, like)))


_SPELLED: dict[Any, Callable[[GraphModule, Any], Node]] = {
    **dict.fromkeys((*_LIKE, aten.full_like.default, aten.new_full.default), _filled),
    aten.type_as.default: _typed,
    **dict.fromkeys((aten.expand_as.default, aten.view_as.default, aten.reshape_as.default), _shaped),
}


def _sizes(module: GraphModule, node: Any) -> list[int | Node]:
    return [_size(module, node, dim) for dim in range(node.meta["val"].dim())]


def _size(module: GraphModule, node: Node, dim: int) -> int | Node:
    size = node.meta["val"].shape[dim]
    if isinstance(size, int):
        return size
    new = module.graph.call_function(aten.sym_size.int, (node, dim))
    new.meta["val"] = size
    return new
