"""The float network that a result came from, rebuilt from its dequantized weights: what a benchmark compares with.

Its weights are those of the quantized network, so only its speed and size mean anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.fx import GraphModule

from brecq.converted.grids import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE
from brecq.deploy.program import program_of
from brecq.graph.constants import fold_constants

if TYPE_CHECKING:
    from brecq.result import QuantResult


def float_graph(result: QuantResult) -> GraphModule:
    """The network of a result with float weights and no quantizers."""
    graph = program_of(result)
    for node in list(graph.graph.nodes):
        if node.target is QUANTIZE:
            for dequantizer in list(node.users):
                assert dequantizer.target is DEQUANTIZE
                dequantizer.replace_all_uses_with(node.args[0])
                graph.graph.erase_node(dequantizer)
            graph.graph.erase_node(node)
    fold_constants(graph)
    assert not any(node.target is DEQUANTIZE_CHANNELS for node in graph.graph.nodes)
    return graph
