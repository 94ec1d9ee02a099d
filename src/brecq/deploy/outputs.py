"""What files call the outputs of a network."""

from __future__ import annotations

import unicodedata
from typing import Any

from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from brecq.deploy.complete import Completed


def outputs(graph: GraphModule) -> list[Any]:
    """What a program returns, flat, in order: a node may be there several times; some may be no nodes."""
    (result,) = graph.graph.output_node().args
    return pytree.tree_leaves(result, is_leaf=lambda leaf: isinstance(leaf, Node))


def output_names(completed: Completed) -> list[str]:
    """`output`; of several outputs the keys of the network's dictionary, or `output_0`, `output_1`, ... where files
    cannot tell values by them: one is empty, no text, the name of an input, or twice there (1 and "1")."""
    context = getattr(completed.graph, "_out_spec", None)
    count = len(outputs(completed.graph))
    keys = context.context if context is not None and context.type is dict else None
    if keys is not None and len(keys) == count:
        names = [str(key) for key in keys]
        if all(map(_is_text, names)) and len({*names, *completed.inputs}) == count + len(completed.inputs):
            return names
    return _numbered(count)


def order_note(completed: Completed) -> tuple[str, ...]:
    """The order of a dictionary's outputs, for users of a file that knows them by number; empty for other outputs."""
    names = output_names(completed)
    if len(names) == 1 or names == _numbered(len(names)):
        return ()
    return (f"outputs have no names there, and come in this order: {', '.join(names)}",)


def _numbered(count: int) -> list[str]:
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _is_text(name: str) -> bool:
    return bool(name) and not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name)
