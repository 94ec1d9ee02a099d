"""Names of nodes: after the modules that they compute for, `layer1.0.conv1/Conv`; constants after their tensors."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of PyTorch's exporter: the modules around a node, outermost first, then the node."""


def name_nodes(graph: ir.Graph) -> None:
    """Name the nodes of a neutral graph, right after the exporter made it."""
    for node in graph:
        first = node.inputs[0] if node.inputs else None
        if node.op_type == "Quantize":
            path = str(node.outputs[0].name)
        elif first is not None and node.op_type in ("Dequantize", "DequantizeConstant"):
            path = str(first.name)
        else:
            scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['']"))
            path = scopes[-2] if len(scopes) > 1 else ""
        node.name = f"{path}/{node.op_type}" if path else node.op_type
    unique_names(graph)


def name_beside(node: ir.Node, op: str) -> str:
    """The name of an `op` that computes for the same module as `node`; `unique_names` tells equal ones apart."""
    path, _, _ = (node.name or "").rpartition("/")
    return f"{path}/{op}" if path else op


def unique_names(graph: ir.Graph) -> None:
    """Number the nodes of equal names, in program order."""
    seen: Counter[str] = Counter()
    taken = {node.name for node in graph}
    for node in graph:
        name = node.name or node.op_type
        seen[name] += 1
        while seen[name] > 1 and f"{name}_{seen[name]}" in taken:
            seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
