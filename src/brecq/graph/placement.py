"""Placement: which tensors of a network are quantized, to how many bits, and why others stay in float.

`output` (Li et al. 2021): after each convolution's activation function and after each residual addition's; a
convolution that feeds an addition directly is not quantized before it; whatever else enters a convolution or linear
layer (pooled features, normalized tokens, the network's input) is quantized there. The network's output stays float.

`input`: the inputs of convolutions and linear layers, and nothing else.

Tensors that a concatenation joins in front of a layer share one quantizer, as integer runtimes need.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import Quantizer

from brecq.config import FLOAT, QuantConfig, Scheme
from brecq.errors import ConfigError
from brecq.graph import ops, pt2e
from brecq.graph.dataflow import layer_names
from brecq.graph.ends import first_layers, last_layers
from brecq.quant.affine import IntRange

ANNOTATION = "quantization_annotation"
END = "brecq_end"
"""Marks a layer whose width is that of the `first` or `last` layers."""

_POOLING = {ops.aten.avg_pool2d.default, ops.aten.adaptive_avg_pool2d.default, ops.aten.mean.dim}


@dataclass
class Placement:
    """What `plan` decided.

    Attributes:
        weight_bits: per weighted operator. input_bits: per weighted operator, of the tensor it reads.
        tensors: bits of each quantized tensor. groups: tensors that share one quantizer, per tensor its leader.
        edges: (`input` placement) bits of the tensor that enters each weighted operator.
        own_weights, own_inputs: names of layers whose width `first_last` or a rule decides, not the general setting.
        ends: `first` or `last`, of the layers whose width `first_last` decides.
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


def plan(graph: GraphModule, config: QuantConfig) -> Placement:
    """Decide what is quantized in a captured graph.

    Raises:
        ConfigError: a rule's pattern matches no layer.
    """
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    names = layer_names(nodes)
    weighted = {node: name for node, name in zip(nodes, names, strict=True) if name}
    placement = Placement(weighted)
    if not weighted:
        raise ConfigError("the network has no convolution or linear layer; there is nothing to quantize")
    shared = _names_by_weight(weighted)
    for rule in config.rules:
        if not any(rule.matches(name) for names in shared.values() for name in names):
            raise ConfigError(
                f"no layer matches {rule.pattern!r}; there are {', '.join(list(weighted.values())[:8])}, ..."
            )
    ends = dict.fromkeys(first_layers(graph, weighted), "first") | dict.fromkeys(last_layers(graph, weighted), "last")
    for node, name in weighted.items():
        bits = [config.weights, config.activations]
        if config.first_last is not None and node in ends:
            bits = [old if old == FLOAT else config.first_last for old in bits]
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
    if config.placement == "input":
        _place_inputs(placement)
    else:
        _place_outputs(graph, placement, config)
    return placement


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
        shared[_tensor(node)] = max(shared[_tensor(node)], bits)
    placement.edges = {node: shared[_tensor(node)] for node, bits in placement.input_bits.items() if bits != FLOAT}
    placement.edges = {node: bits for node, bits in placement.edges.items() if bits != FLOAT}


def _tensor(layer: Node) -> Node:
    source = layer.args[0]
    assert isinstance(source, Node)
    return source


def _place_outputs(graph: GraphModule, placement: Placement, config: QuantConfig) -> None:
    wanted: list[Node] = []
    for node in graph.graph.nodes:
        if node in placement.layers:
            end = activation_end(node)
            feeds_add = end is node and any(_is_residual_add(user) for user in _through_scaling(node))
            if not feeds_add:
                wanted.append(end)
        elif _is_residual_add(node):
            end = activation_end(node)
            if _reaches_layer(end, placement.layers):
                wanted.append(end)
    leaders: dict[Node, Node] = {}
    for layer in placement.layers:
        sources = _sources(_tensor(layer))
        wanted += sources
        for source in sources[1:]:
            leaders[_leader(leaders, source)] = _leader(leaders, sources[0])
    output = next(node for node in graph.graph.nodes if node.op == "output")
    outputs = {_origin(source) for source in output.all_input_nodes}
    bits: dict[Node, int] = {}
    for node in dict.fromkeys(wanted):
        if node in outputs and not _reaches_layer(node, placement.layers):
            continue  # the network's output stays float
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            bits[node] = _width(node, placement, config)
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
    """The widest input that a layer reading this tensor asks for; the general setting if no layer reads it."""
    widths = [placement.input_bits[layer] for layer in _readers(node, placement.layers)]
    return max(widths, default=config.activations)


def _is_residual_add(node: Node) -> bool:
    """An addition of two activations (not of a constant)."""
    return node.target in ops.ADD and sum(_is_activation(arg) for arg in node.args) == 2


def _is_activation(value: object) -> bool:
    return isinstance(value, Node) and value.op != "get_attr" and ops.is_tensor(value)


def activation_end(node: Node) -> Node:
    """The last operator of the activation function behind `node`: elementwise, of `node` alone (swish has two)."""
    inside, end, frontier = {node}, node, list(node.users)
    while frontier:
        current = frontier.pop(0)
        if current in inside or current.target not in ops.ELEMENTWISE or not ops.is_tensor(current):
            continue
        sources = [source for source in current.all_input_nodes if _is_activation(source)]
        if not all(source in inside for source in sources):
            continue
        inside.add(current)
        frontier += list(current.users)
        if all(member is current or all(user in inside for user in member.users) for member in inside):
            end = current
    return end


def _through_scaling(node: Node) -> list[Node]:
    """Users of `node`, seen through multiplication by a constant and data movement (layer scale, token reshapes)."""
    found: list[Node] = []
    for user in node.users:
        constant = user.target is ops.aten.mul.Tensor and sum(_is_activation(arg) for arg in user.args) == 1
        found += _through_scaling(user) if constant or user.target in ops.MOVEMENT else [user]
    return found


def _origin(node: Node) -> Node:
    """The tensor that data movement led here."""
    while node.op == "call_function" and node.target in ops.MOVEMENT and isinstance(node.args[0], Node):
        source = node.args[0]
        if not ops.is_tensor(source) and source.target not in ops.MOVEMENT:
            return node  # one of several results that an operator computes (a recurrent layer's)
        node = source
    return node


def _sources(node: Node) -> list[Node]:
    """The tensors to quantize so that `node` is quantized: its origin, or all that a concatenation joins."""
    origin = _origin(node)
    if origin.op == "call_function" and origin.target in ops.CONCAT:
        parts = origin.args[0]
        assert isinstance(parts, (list, tuple))
        joined = [source for part in parts if _is_activation(part) for source in _sources(part)]  # type: ignore[arg-type]
        if len(joined) >= len(parts):
            return list(dict.fromkeys(joined))
    return [origin]


def _readers(node: Node, layers: dict[Node, str], *, through: frozenset[object] = frozenset()) -> list[Node]:
    """Layers whose input is this tensor, directly or through data movement and concatenation."""
    found, stack, seen = [], list(node.users), {node}
    passing = ops.MOVEMENT | ops.CONCAT | through
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in layers:
            found.append(current)
        elif current.op == "call_function" and current.target in passing:
            stack.extend(current.users)
    return found


def _reaches_layer(node: Node, layers: dict[Node, str]) -> bool:
    return bool(_readers(node, layers, through=frozenset(_POOLING)))


class BrecqQuantizer(Quantizer):
    """PT2E quantizer of any bit-widths: annotates a captured graph as `plan` decides."""

    def __init__(self, config: QuantConfig) -> None:
        super().__init__()
        self.config = config
        self.placement: Placement | None = None

    def annotate(self, model: GraphModule) -> GraphModule:
        placement = self.placement = plan(model, self.config)
        for node, end in placement.ends.items():
            node.meta[END] = end
        # A PT2E node holds one annotation: inputs and output are collected first.
        inputs: dict[Node, dict[Node, Any]] = defaultdict(dict)
        outputs: dict[Node, Any] = {}
        leaders: dict[Node, Node] = {}
        symmetric = self.config.activation_scheme == "symmetric"
        for node in model.graph.nodes:
            if node in placement.tensors:
                group = placement.groups[node]
                spec = pt2e.activation_spec(IntRange.activations(placement.tensors[node]), symmetric)
                outputs[node] = pt2e.shared_with(leaders[group]) if group in leaders else spec
                leaders.setdefault(group, node)
        edges: dict[Node, Node] = {}
        for layer, bits in placement.edges.items():
            tensor = _tensor(layer)
            first = edges.setdefault(tensor, layer)
            spec = pt2e.activation_spec(IntRange.activations(bits), symmetric)
            inputs[layer][tensor] = spec if first is layer else pt2e.shared_with((tensor, first))
        for layer, bits in placement.weight_bits.items():
            if bits != FLOAT:
                whole = is_symmetric(self.config.weight_scheme, bits)
                weight: Any = layer.args[1]
                inputs[layer][weight] = pt2e.weight_spec(IntRange.weights(bits, whole), whole, output_axis(layer))
        for node, end in placement.ends.items():
            node.meta[END] = end
        for node in model.graph.nodes:
            if node in inputs or node in outputs:
                pt2e.annotate(node, inputs.get(node, {}), outputs.get(node))
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: `plan` only asks for what brecq can do."""


def is_symmetric(scheme: Scheme, bits: int) -> bool:
    """`auto` is symmetric at 8 bits, what int8 kernels need, and asymmetric below, where a lost level counts."""
    return bits == 8 if scheme == "auto" else scheme == "symmetric"


def output_axis(layer: Node) -> int:
    """The axis of a weight that counts output channels."""
    if not str(ops.kind(layer)).startswith("conv_transpose"):
        return 0
    # [in, out / groups, ...]: a depthwise one has its channels along axis 0.
    weight = layer.args[1].meta["val"]  # type: ignore[union-attr]
    groups = layer.args[6] if len(layer.args) > 6 else 1
    return 0 if groups == weight.shape[0] and weight.shape[1] == 1 else 1
