"""Placement: which tensors of a network are quantized, to how many bits, and why others stay in float.

`output` (Li et al. 2021): after each convolution's activation function and after each residual addition's; a
convolution that feeds an addition directly is not quantized before it; whatever else enters a convolution or linear
layer (pooled features, normalized tokens, the network's input) is quantized there. The network's output stays float,
and so does what no layer depends on: boxes and scores before they are decoded, maps before they are resized.

`input`: the inputs of convolutions and linear layers, and nothing else.

Tensors that a concatenation joins in front of a layer share one quantizer, as integer runtimes need.

With a target (`targeted`) layers have widths that its kernels take, and whatever these read and write is quantized.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.fx import GraphModule, Node

from brecq.config import FLOAT, LayerRule, QuantConfig
from brecq.errors import ConfigError
from brecq.graph import ops
from brecq.graph.dataflow import constants, layer_names
from brecq.graph.ends import first_layers, last_layers
from brecq.graph.reach import (
    POOLING,
    activation_end,
    before_layers,
    is_pooled,
    is_residual_add,
    origin_of,
    reaches_layer,
    readers_of,
    sources_of,
    users_through_scaling,
)
from brecq.placement import targeted
from brecq.targets import WIDE, Kernel, Target
from brecq.text import some

END = "brecq_end"
"""Marks a layer whose width is that of the `first` or `last` layers."""

REASON = "brecq_reason"
"""Why a layer has other widths than were asked for."""

End = Literal["first", "last"]


@dataclass
class Placement:
    """What `plan` decided.

    Attributes:
        weight_bits: per weighted operator. input_bits: per weighted operator, of the tensor it reads.
        tensors: bits of each quantized tensor. groups: tensors that share one quantizer, per tensor its leader.
        edges: (`input` placement) bits of the tensor that enters each weighted operator.
        own_weights, own_inputs: names of layers whose width `first_last` or a rule decides, not the general setting.
        ends: `first` or `last`, of the layers whose width `first_last` decides.
        kernels: of the target, for the layers that have one. reasons: why layers have other widths than asked for.
    """

    layers: dict[Node, str]
    weight_bits: dict[Node, int] = field(default_factory=dict)
    input_bits: dict[Node, int] = field(default_factory=dict)
    tensors: dict[Node, int] = field(default_factory=dict)
    groups: dict[Node, Node] = field(default_factory=dict)
    edges: dict[Node, int] = field(default_factory=dict)
    own_weights: set[str] = field(default_factory=set)
    own_inputs: set[str] = field(default_factory=set)
    ends: dict[Node, str] = field(default_factory=dict)
    kernels: dict[Node, Kernel] = field(default_factory=dict)
    reasons: dict[Node, str] = field(default_factory=dict)


def plan(graph: GraphModule, config: QuantConfig, part: frozenset[End] | None = None) -> Placement:
    """Decide what is quantized in a captured graph.

    Args:
        part: the graph is a part of a network; which ends of the network it holds. Rules may be for other parts.

    Raises:
        ConfigError: a rule's pattern matches no layer, or the target has no kernel for what is asked for.
    """
    fixed = constants(graph.graph)  # a layer of a constant computes the same for every sample: nothing to quantize
    nodes = [node for node in graph.graph.nodes if node.op == "call_function" and node not in fixed]
    names = layer_names(nodes)
    weighted = {node: name for node, name in zip(nodes, names, strict=True) if name}
    placement = Placement(weighted)
    if not weighted:
        raise ConfigError("the network has no convolution or linear layer; there is nothing to quantize")
    shared = _names_by_weight(weighted)
    for rule in config.rules:
        if part is None and not any(rule.matches(name) for names in shared.values() for name in names):
            raise ConfigError(unmatched(rule, list(weighted.values())))
    ends: dict[Node, str] = {}
    for end, found in (("first", first_layers(graph, weighted)), ("last", last_layers(graph, weighted))):
        ends |= dict.fromkeys(found, end) if part is None or end in part else {}
    second = _readers_of_first(ends, weighted) if _widens_outputs(config) else set()
    for node, name in weighted.items():
        bits = [config.weights, config.activations]
        if node in second:
            bits[1] = _end_input(config)
            placement.own_inputs.add(name)
        if config.first_last is not None and node in ends:
            ends_bits = (config.first_last, _end_input(config))
            bits = [old if old == FLOAT else new for old, new in zip(bits, ends_bits, strict=True)]
            placement.ends[node] = ends[node]
            placement.own_weights.add(name)
            placement.own_inputs.add(name)
        for rule in config.rules:
            if any(map(rule.matches, shared[node.args[1]])):
                mine = rule.matches(name) or not any(map(rule.matches, weighted.values()))
                wanted = (rule.weights, rule.activations if mine else None)
                bits = [new or old for new, old in zip(wanted, bits, strict=True)]
                placement.own_weights |= {name} if rule.weights else set()
                placement.own_inputs |= {name} if wanted[1] else set()
                placement.ends.pop(node, None)
        constant = isinstance(node.args[1], Node) and node.args[1].op == "get_attr"
        placement.weight_bits[node] = bits[0] if constant else FLOAT
        placement.input_bits[node] = bits[1] if constant else FLOAT
    target = config.runtime
    if target is not None:
        _fit(placement, config, target, shared)
    if config.placement == "input":
        _place_inputs(placement)
    else:
        _place_outputs(graph, placement, config, target)
    return placement


def _end_input(config: QuantConfig) -> int:
    """Bits of what the first and last layers read: those of `first_last` are to be more, not fewer, than all have."""
    assert config.first_last is not None
    return WIDE if config.activations == WIDE else config.first_last


def _widens_outputs(config: QuantConfig) -> bool:
    """Whether what first layers put out, and what is pooled for last ones, has more bits than others."""
    return config.first_last_outputs and config.has_wider_ends


def unmatched(rule: LayerRule, layers: Sequence[str]) -> str:
    """What to say of a rule for none of the layers of these names."""
    inside = any(layer.startswith(f"{rule.pattern}.") for layer in layers)
    hint = f"; {rule.pattern + '.*'!r} is all of {rule.pattern}" if inside else ""
    return f"no layer matches {rule.pattern!r}; there are {some(layers, 8)}{hint}"


def _readers_of_first(ends: dict[Node, str], weighted: dict[Node, str]) -> set[Node]:
    """The layers that read what a first layer puts out."""
    found = (activation_end(node) for node, end in ends.items() if end == "first")
    return {reader for end in found for reader in readers_of(end, weighted)}


def _fit(placement: Placement, config: QuantConfig, target: Target, shared: dict[object, set[str]]) -> None:
    """Give every layer widths that the target has a kernel for."""
    kinds = {targeted.layer_kind(node) for node in placement.layers}
    targeted.check_general(target, kinds, (config.weights, config.activations))
    weights: dict[object, int] = defaultdict(int)
    for node, name in placement.layers.items():
        asked = placement.weight_bits[node], placement.input_bits[node]
        fitted = targeted.fit(target, node, asked)
        if fitted.reason and any(rule.matches(each) for rule in config.rules for each in shared[node.args[1]]):
            raise ConfigError(f"{fitted.reason} ({name}); change the rule for it, or the target")
        placement.weight_bits[node], placement.input_bits[node] = fitted.widths
        weights[node.args[1]] = max(weights[node.args[1]], fitted.widths[0])
        if fitted.reason:
            placement.reasons[node] = fitted.reason
        if fitted.kernel is not None and fitted.widths[1] != FLOAT:
            placement.kernels[node] = fitted.kernel
    widths = [*placement.weight_bits.values(), *placement.input_bits.values()]
    if placement.reasons and all(width == FLOAT for width in widths):
        reason = next(iter(placement.reasons.values()))
        raise ConfigError(f"{target.name} would leave every layer in float ({reason}); ask for other widths")
    for node in placement.layers:  # layers that share a weight share its width
        placement.weight_bits[node] = weights[node.args[1]]


def _names_by_weight(weighted: dict[Node, str]) -> dict[object, set[str]]:
    """For each weight the names of all layers that read it and of all modules that hold it: they share a width."""
    names: dict[object, set[str]] = defaultdict(set)
    for node, name in weighted.items():
        names[node.args[1]] |= {name, *node.meta.get(ops.TIED, ())}
    return names


def _place_inputs(placement: Placement) -> None:
    """Quantize what enters each layer; layers that read the same tensor read it at the same width."""
    shared: dict[Node, int] = defaultdict(int)
    for node, bits in placement.input_bits.items():
        shared[input_of(node)] = max(shared[input_of(node)], bits)
    placement.edges = {node: shared[input_of(node)] for node, bits in placement.input_bits.items() if bits != FLOAT}
    placement.edges = {node: bits for node, bits in placement.edges.items() if bits != FLOAT}


def input_of(layer: Node) -> Node:
    """The tensor that a layer reads."""
    source = layer.args[0]
    assert isinstance(source, Node)
    return source


def _place_outputs(
    graph: GraphModule, placement: Placement, config: QuantConfig, target: Target | None = None
) -> None:
    wanted: list[Node] = []
    for node in graph.graph.nodes:
        if node in placement.layers:
            end = activation_end(node)
            feeds_add = end is node and any(is_residual_add(user) for user in users_through_scaling(node))
            if not feeds_add:
                wanted.append(end)
        elif is_residual_add(node):
            end = activation_end(node)
            if reaches_layer(end, placement.layers):
                wanted.append(end)
    leaders: dict[Node, Node] = {}
    for layer in placement.layers:
        sources = sources_of(input_of(layer))
        wanted += sources
        for source in sources[1:]:
            leaders[_leader(leaders, source)] = _leader(leaders, sources[0])
    output = next(node for node in graph.graph.nodes if node.op == "output")
    outputs = {origin_of(source) for source in output.all_input_nodes}
    inside = before_layers(graph, placement.layers).union(*(sources_of(input_of(layer)) for layer in placement.layers))
    bits: dict[Node, int] = {}
    for node in dict.fromkeys(wanted):
        if node in outputs and not reaches_layer(node, placement.layers):
            continue  # the network's output stays float
        if node not in inside and not is_pooled(node):
            continue  # so does what is only decoded or resized to become one: boxes, scores, masks
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            bits[node] = _width(node, placement, config)
    if target is not None:
        known = {node for node, width in bits.items() if width != FLOAT}
        more, same = targeted.tensors_of_kernels(graph, target, placement.kernels, known, sources_of)
        bits |= dict.fromkeys(more, target.widest(config.activations))
        for first, *others in same:
            for other in others:
                leaders[_leader(leaders, other)] = _leader(leaders, first)
    widest: dict[Node, int] = defaultdict(int)
    for node, width in bits.items():
        leader = _leader(leaders, node)
        widest[leader] = max(widest[leader], width)
    for node in bits:
        leader = _leader(leaders, node)
        if widest[leader] != FLOAT:
            placement.tensors[node] = widest[leader]
            placement.groups[node] = leader


def _leader(leaders: dict[Node, Node], node: Node) -> Node:
    while leaders.get(node, node) is not node:
        node = leaders[node]
    return node


def _width(node: Node, placement: Placement, config: QuantConfig) -> int:
    """The widest input that a layer reading this tensor asks for; the general setting if no layer reads it, unless a
    last layer reads what is pooled of it and `first_last_outputs` says the same for both."""
    readers = readers_of(node, placement.layers)
    if not readers and _widens_outputs(config):
        pooled = readers_of(node, placement.layers, through=POOLING)
        readers = [layer for layer in pooled if placement.ends.get(layer) == "last"]
    return max((placement.input_bits[layer] for layer in readers), default=config.activations)
