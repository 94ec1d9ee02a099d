"""The float network as an ONNX file, for comparisons of speed and size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from brecq.deploy.floats import float_graph
from brecq.deploy.onnx.neutral import to_onnx

if TYPE_CHECKING:
    from brecq.result import QuantResult


def write_float(result: QuantResult, path: Path) -> None:
    """Write the network of a result with float weights (its dequantized ones) as ONNX."""
    graph = float_graph(result)
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    model = to_onnx(graph, result.example_inputs, names, None)
    model.ir_version = 8
    ir.save(model, path)
