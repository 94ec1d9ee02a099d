"""Operators that choose by order: of equal values ONNX takes the one that comes first, PyTorch any.

What is computed behind a choice belongs to what was chosen. Where values differ by less than two runtimes do, nothing
says which of them that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from brecq.graph import ops

aten = ops.aten

_ARGSORTS = {aten.argsort.default, aten.argsort.stable}
CHOICES = {aten.topk.default, aten.sort.default, aten.sort.stable, *_ARGSORTS}

CLOSE = 1e-5
"""Share of the largest magnitude that two runtimes' floats may lie apart."""


def chosen(target: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """What one of `CHOICES` returns, of equal values the first one first."""
    values, index, dim, count = _in_order(target, args, kwargs)
    values, index = values.narrow(dim, 0, count), index.narrow(dim, 0, count)
    return index if target in _ARGSORTS else (values, index)


def close_choices(graph: GraphModule, inputs: Sequence[Tensor]) -> list[str]:
    """In words, each operator of a program that chooses, on these inputs, among values that tie or nearly do."""
    run = _Watched(graph)
    if any(node.target in CHOICES for node in graph.graph.nodes):
        run.run(*inputs)
    return run.found


class _Watched(Interpreter):
    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.found: list[str] = []

    def run_node(self, n: Node) -> Any:
        if n.op == "call_function" and n.target in CHOICES:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            close, neighbours = _ties(n.target, args, kwargs)
            if close:
                where = ops.module_path(n)
                self.found.append(
                    f"{ops.op_name(n)}{f' in {where}' if where else ''} chooses among values that tie or nearly do "
                    f"({close} of {neighbours} neighbours in their order)"
                )
        return super().run_node(n)


def _ties(target: Any, args: Sequence[Any], kwargs: Any) -> tuple[int, int]:
    """Of the values that are chosen, and the first that is not, how many are next to the one before; and how many
    there are."""
    values, _, dim, count = _in_order(target, args, kwargs)
    values = values.narrow(dim, 0, min(count + 1, values.shape[dim])).double()
    if not values.numel():
        return 0, 0
    gaps = values.diff(dim=dim).abs()
    return int((gaps <= CLOSE * values.abs().max()).sum()), gaps.numel()


def _in_order(target: Any, args: Sequence[Any], kwargs: Any) -> tuple[Tensor, Tensor, int, int]:
    """All values in order, where they were, along which dimension, and how many are taken."""
    given = {each.name: each.default_value for each in target._schema.arguments if each.has_default_value()}
    given |= dict(zip((each.name for each in target._schema.arguments), args, strict=False)) | kwargs
    value, dim = given["self"], given["dim"]
    descending = given["largest"] if "largest" in given else given["descending"]
    values, index = value.sort(dim=dim, descending=descending, stable=True)
    return values, index, dim, given.get("k", value.shape[dim] if value.dim() else 1)
