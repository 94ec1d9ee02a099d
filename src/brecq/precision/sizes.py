"""What the layers of a network take, before any bits are chosen: per searched weight and width, and all the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from brecq.checkpoint.tensors import collect_tensors, stored_bytes
from brecq.config import QuantConfig
from brecq.converted.convert import convert
from brecq.graph.fold import get_tensor
from brecq.partition.blocks import Network
from brecq.placement.prepare import fake_quantize_node
from brecq.precision.layers import Anatomy, Layer
from brecq.precision.meter import packed_bytes, variant_of
from brecq.quant.fake_quant import ActivationFakeQuantize, BaseFakeQuantize, Mode, WeightFakeQuantize, set_mode
from brecq.quant.grid import Grid


def with_bytes(anatomy: Anatomy, sizes: dict[str, dict[int, int]]) -> tuple[Layer, ...]:
    """Give the first layer of every searched weight its packed sizes."""
    owner = {knob.name: knob.layers[0] for knob in anatomy.knobs if knob.name in sizes}
    return tuple(
        replace(layer, weight_bytes=sizes[layer.weight]) if owner.get(layer.weight) == layer.name else layer
        for layer in anatomy.layers
    )


@torch.no_grad()
def preview_bytes(network: Network, anatomy: Anatomy, config: QuantConfig) -> dict[str, dict[int, int]]:
    """Packed sizes of the searched weights before their ranges are searched: minimum to maximum takes their place."""
    weights = {
        network.graph.get_submodule(str(node.target)): get_tensor(network.graph, str(node.args[0].target))
        for node in network.graph.graph.nodes
        if isinstance(fake_quantize_node(network.graph, node), WeightFakeQuantize)
    }
    sizes: dict[str, dict[int, int]] = {}
    for knob in anatomy.knobs:
        original = anatomy.quantizers.get(knob.name)
        if not knob.free or not isinstance(original, WeightFakeQuantize):
            continue
        for bits in knob.bits:
            variant = variant_of(original, bits, config)
            assert isinstance(variant, WeightFakeQuantize)
            variant.initialize(weights[original], config.recipe.range_norm, 1)
            sizes.setdefault(knob.name, {})[bits] = packed_bytes(variant, weights[original])
    return sizes


@torch.no_grad()
def other_bytes(network: Network, anatomy: Anatomy, config: QuantConfig) -> int:
    """Stored size of all but the searched weights, from a conversion with placeholders where values do not matter."""
    searched = {anatomy.quantizers[knob.name] for knob in anatomy.knobs if knob.free and knob.kind == "weight"}
    skip: set[str] = set()
    for node in network.graph.graph.nodes:
        module: Any = network.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, ActivationFakeQuantize):
            module.grid = Grid(torch.tensor(1.0), torch.tensor(0.0), module.range)
        elif isinstance(module, WeightFakeQuantize) and not module.initialized:
            weight = get_tensor(network.graph, str(node.args[0].target))
            candidates = 1 if module in searched else config.recipe.range_candidates
            module.initialize(weight, config.recipe.range_norm, candidates)
            skip |= {str(node.args[0].target)} if module in searched else set()
    set_mode(network.graph, Mode.HARD)
    tensors = collect_tensors(convert(network.graph))
    for module in network.graph.modules():
        if isinstance(module, BaseFakeQuantize):
            module.restore({})
    set_mode(network.graph, Mode.FLOAT)
    return stored_bytes({name: value for name, value in tensors.items() if name not in skip})
