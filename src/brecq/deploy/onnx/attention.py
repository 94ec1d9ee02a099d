"""Attention in the operators that ONNX has for any number of dimensions; the exporter knows four alone."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from brecq.graph.ops import aten

_FORM = aten.scaled_dot_product_attention.default


def spell_out_attention(graph: GraphModule) -> GraphModule:
    """The program with every attention over other than four dimensions as two products and a softmax.

    `softmax(q·kᵀ·scale + mask)·v`, as PyTorch computes it; a program without such is returned as it is.
    """
    if not any(map(_is_foreign, graph.graph.nodes)):
        return graph
    copied = GraphModule(graph, copy.deepcopy(graph.graph))
    for node in list(copied.graph.nodes):
        if _is_foreign(node):
            node.replace_all_uses_with(_spell_out(copied, node))
            copied.graph.erase_node(node)
    copied.recompile()
    return copied


def _is_foreign(node: Node) -> bool:
    """Over another number of dimensions than four, and without heads that share keys."""
    return node.target is _FORM and node.meta["val"].ndim != 4 and not _arguments(node).get("enable_gqa")


def _arguments(node: Node) -> dict[str, Any]:
    names = [argument.name for argument in _FORM._schema.arguments]
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def _spell_out(module: GraphModule, node: Node) -> Node:
    given = _arguments(node)
    query, key, value, mask = given["query"], given["key"], given["value"], given.get("attn_mask")
    scale = given.get("scale")
    if scale is None:
        scale = 1 / math.sqrt(query.meta["val"].shape[-1])

    def call(operator: Any, *args: Any) -> Node:
        made = module.graph.call_function(operator, args)
        made.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
        return made

    with module.graph.inserting_before(node):
        scores = call(aten.matmul.default, call(aten.mul.Scalar, query, scale), call(aten.transpose.int, key, -2, -1))
        if given.get("is_causal"):
            pairs = (query.meta["val"].shape[-2], key.meta["val"].shape[-2])
            hidden = call(aten.logical_not.default, call(aten.tril.default, call(aten.ones.default, pairs)))
            scores = call(aten.masked_fill.Scalar, scores, hidden, -math.inf)
        elif mask is not None and mask.meta["val"].dtype == torch.bool:
            scores = call(aten.masked_fill.Scalar, scores, call(aten.logical_not.default, mask), -math.inf)
        elif mask is not None:
            scores = call(aten.add.Tensor, scores, mask)
        return call(aten.matmul.default, call(aten.softmax.int, scores, -1), value)
