"""What a converted program quantizes: its weighted layers and its activations."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule, Node

from brecq.converted.grids import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE
from brecq.graph.dataflow import constants
from brecq.graph.ops import kind


@dataclass(frozen=True)
class WeightedLayer:
    """A convolution or linear layer of a converted program.

    Attributes:
        node: the operator. kind: `conv2d`, `linear`, ..., see `brecq.graph.ops.WEIGHTED`.
        weight: name of the constant it reads as weight; `None` for a weight that is computed.
        dequantize: the operator between the two where the weight is quantized.
    """

    node: Node
    kind: str
    weight: str | None
    dequantize: Node | None


def weighted_layers(converted: GraphModule) -> list[WeightedLayer]:
    """All weighted layers of activations, quantized or not, in the order of execution."""
    layers = []
    fixed = constants(converted.graph)
    for node in converted.graph.nodes:
        name = kind(node)
        if name is None or node in fixed:
            continue
        source, dequantize = node.args[1], None
        if source.target in (DEQUANTIZE, DEQUANTIZE_CHANNELS):
            source, dequantize = source.args[0], source
        layers.append(WeightedLayer(node, name, str(source.target) if source.op == "get_attr" else None, dequantize))
    return layers


def quantized_activations(converted: GraphModule) -> list[Node]:
    """The quantize operators of activations, in the order of execution."""
    return [node for node in converted.graph.nodes if node.target is QUANTIZE]
