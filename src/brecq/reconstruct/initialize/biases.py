"""Biases: the unit that each is learned in. A layer without batch norm may have biases that are nothing beside its
outputs (SqueezeNet's are thousandths of them), and those are what a useful step is measured by."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from brecq import ranks
from brecq.graph import ops
from brecq.placement.prepare import fake_quantize_node
from brecq.quant.fake_quant import BiasFakeQuantize
from brecq.reconstruct.site import Site

SHARE = 0.1
"""Of the root mean square of a layer's outputs: biases that have less are learned in units of it."""

SAMPLES = 64
"""That outputs are looked at of."""


@torch.no_grad()
def bias_units(site: Site) -> None:
    """Set `unit` of the block's biases from what their layers give in the float network."""
    waiting = {module: bias for module, bias in site.mine.biases.values() if module.unit is None}
    if not waiting:
        return
    streams, block = site.streams, site.block
    streams.set_mode("float", block)
    squares = _Squares(block.module)
    for unit in streams.share.units(SAMPLES):
        for rows in streams.slices(block, unit.rows):
            squares.run(*streams.read("float", block.inputs, rows))
    for module, bias in waiting.items():
        total, count = ranks.current().total(*squares.found[module])
        outputs = (total / max(count, 1.0)) ** 0.5
        module.unit = torch.maximum(bias.square().mean().sqrt(), bias.new_tensor(SHARE * outputs))


class _Squares(Interpreter):
    """Adds up the squares of what layers give, by the bias beside them: [sum, count]."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.beside = {node: bias_of(module, node) for node in module.graph.nodes if ops.kind(node)}
        self.found: dict[BiasFakeQuantize | None, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n in self.beside and isinstance(result, Tensor):
            sums = self.found[self.beside[n]]
            sums[0] += float(torch.linalg.vector_norm(result, dtype=torch.float64)) ** 2
            sums[1] += result.numel()
        return result


def bias_of(module: GraphModule, layer: Node) -> BiasFakeQuantize | None:
    """The fake-quantizer of a layer's bias; `None` where it has none."""
    found = fake_quantize_node(module, layer.args[2]) if len(layer.args) > 2 else None
    return found if isinstance(found, BiasFakeQuantize) else None
