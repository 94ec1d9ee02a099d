"""What reads a part of a concatenation reads the tensor that the part came from.

`cat([token, patches], 1)[:, :1]` is `token`. Left as it is, a layer behind it would seem to read all that was joined,
which then had to share one grid with the part: a class token beside patches whose values are a hundred times as large.
"""

from __future__ import annotations

import sys
from typing import Any

from torch.fx import GraphModule, Node

from brecq.graph import ops

aten = ops.aten


def read_from_parts(module: GraphModule) -> None:
    """Rewrite slices and selections that lie within one of the tensors that a concatenation joins, in place."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in (aten.slice.Tensor, aten.select.int):
            _read_from_part(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _read_from_part(module: GraphModule, node: Node) -> None:
    joined: Any = node.args[0]
    if joined.op != "call_function" or joined.target not in (aten.cat.default, aten.concat.default):
        return
    rank = joined.meta["val"].dim()
    axis, own = (int(dim) % rank for dim in (_argument(joined, 1, 0), _argument(node, 1, 0)))
    sizes = [part.meta["val"].shape[axis] for part in joined.args[0]]
    whole = joined.meta["val"].shape[axis]
    if axis != own or axis == 0 or not all(isinstance(size, int) for size in (*sizes, whole)):
        return
    bounds = _bounds(node, whole)
    if bounds is None:
        return
    start, stop = bounds
    before = 0
    for part, size in zip(joined.args[0], sizes, strict=True):
        if before <= start < stop <= before + size:
            _replace(module, node, part, axis, start - before, stop - before, size)
            return
        before += size


def _bounds(node: Node, whole: int) -> tuple[int, int] | None:
    """The places along the axis that are read, one after the other; `None` for others."""
    if node.target is aten.select.int:
        place: Any = node.args[2]
        return (place % whole, place % whole + 1) if isinstance(place, int) else None
    start, stop, step = _argument(node, 2, 0) or 0, _argument(node, 3, None), _argument(node, 4, 1)
    stop = sys.maxsize if stop is None else stop
    if step != 1 or not (isinstance(start, int) and isinstance(stop, int)):
        return None
    return slice(start, stop).indices(whole)[:2]


def _replace(module: GraphModule, node: Node, part: Node, axis: int, start: int, stop: int, size: int) -> None:
    if node.target is aten.select.int:
        node.args = (part, axis, start)
    elif (start, stop) == (0, size):
        node.replace_all_uses_with(part)
        module.graph.erase_node(node)
    else:
        node.args, node.kwargs = (part, axis, start, stop), {}


def _argument(node: Node, position: int, default: Any) -> Any:
    name = node.target._schema.arguments[position].name  # type: ignore[union-attr]
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
