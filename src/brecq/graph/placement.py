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
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import Quantizer

from brecq.config import FLOAT, ActivationScheme, QuantConfig
from brecq.errors import ConfigError
from brecq.graph import ops, pt2e, targeted
from brecq.graph.dataflow import constants, layer_names
from brecq.graph.ends import first_layers, is_mean, last_layers
from brecq.graph.integer import THREE, operator_of
from brecq.quant.affine import IntRange
from brecq.targets import Kernel, Target, load

END = "brecq_end"
"""Marks a layer whose width is that of the `first` or `last` layers."""

REASON = "brecq_reason"
"""Why a layer has other widths than were asked for."""

End = Literal["first", "last"]

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
            raise ConfigError(
                f"no layer matches {rule.pattern!r}; there are {', '.join(list(weighted.values())[:8])}, ..."
            )
    ends: dict[Node, str] = {}
    for end, found in (("first", first_layers(graph, weighted)), ("last", last_layers(graph, weighted))):
        ends |= dict.fromkeys(found, end) if part is None or end in part else {}
    second = _readers_of_first(ends, weighted) if config.first_last_outputs else set()
    for node, name in weighted.items():
        bits = [config.weights, config.activations]
        if config.first_last is not None and node in second and bits[1] != FLOAT:
            bits[1] = config.first_last
            placement.own_inputs.add(name)
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
    target = None if config.target is None else load(config.target)
    if target is not None:
        _fit(placement, config, target, shared)
    if config.placement == "input":
        _place_inputs(placement)
    else:
        _place_outputs(graph, placement, config, target)
    return placement


def _readers_of_first(ends: dict[Node, str], weighted: dict[Node, str]) -> set[Node]:
    """The layers that read what a first layer puts out."""
    found = (activation_end(node) for node, end in ends.items() if end == "first")
    return {reader for end in found for reader in _readers(end, weighted)}


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
        shared[_tensor(node)] = max(shared[_tensor(node)], bits)
    placement.edges = {node: shared[_tensor(node)] for node, bits in placement.input_bits.items() if bits != FLOAT}
    placement.edges = {node: bits for node, bits in placement.edges.items() if bits != FLOAT}


def _tensor(layer: Node) -> Node:
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
    inside = _before_layers(graph, placement.layers).union(*(_sources(_tensor(layer)) for layer in placement.layers))
    bits: dict[Node, int] = {}
    for node in dict.fromkeys(wanted):
        if node in outputs and not _reaches_layer(node, placement.layers):
            continue  # the network's output stays float
        if node not in inside and not _is_pooled(node):
            continue  # so does what is only decoded or resized to become one: boxes, scores, masks
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            bits[node] = _width(node, placement, config)
    if target is not None:
        known = {node for node, width in bits.items() if width != FLOAT}
        more, same = targeted.tensors_of_kernels(graph, target, placement.kernels, known, _sources)
        bits |= dict.fromkeys(more, target.widest)
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
    readers = _readers(node, placement.layers)
    if config.first_last_outputs and not readers:
        pooled = _readers(node, placement.layers, through=frozenset(_POOLING))
        readers = [layer for layer in pooled if placement.ends.get(layer) == "last"]
    return max((placement.input_bits[layer] for layer in readers), default=config.activations)


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
        found += _through_scaling(user) if constant or ops.moves(user) else [user]
    return found


def _origin(node: Node) -> Node:
    """The tensor that data movement led here."""
    while node.op == "call_function" and ops.moves(node) and isinstance(node.args[0], Node):
        source = node.args[0]
        if not ops.is_tensor(source) and not ops.moves(source):
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
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in layers:
            found.append(current)
        elif current.op == "call_function" and (ops.moves(current) or current.target in ops.CONCAT | through):
            stack.extend(current.users)
    return found


def _before_layers(graph: GraphModule, layers: dict[Node, str]) -> set[Node]:
    """The nodes that some layer depends on, other than one that decodes a box by the mean of a distribution."""
    found: set[Node] = set()
    for node in reversed(graph.graph.nodes):
        if node in found or (node in layers and not is_mean(node)):
            found.update(source for source in node.all_input_nodes if not ops.is_size(source))
    return found


def _is_pooled(node: Node) -> bool:
    """True if the mean of a tensor is taken, as it is or of its elements moved."""
    moved = [node]
    for each in moved:  # which grows
        if any(user.target in _POOLING for user in each.users):
            return True
        moved += [u for u in each.users if (ops.moves(u) or u.target in ops.CONCAT) and u not in moved]
    return False


def _reaches_layer(node: Node, layers: dict[Node, str]) -> bool:
    return bool(_readers(node, layers, through=frozenset(_POOLING)))


class BrecqQuantizer(Quantizer):
    """PT2E quantizer of any bit-widths: annotates a captured graph as `plan` decides."""

    def __init__(self, config: QuantConfig, part: frozenset[End] | None = None) -> None:
        super().__init__()
        self.config, self.part = config, part
        self.placement: Placement | None = None

    def annotate(self, model: GraphModule) -> GraphModule:
        placement = self.placement = plan(model, self.config, self.part)
        # A PT2E node holds one annotation: inputs and output are collected first.
        inputs: dict[Node, dict[Node, Any]] = defaultdict(dict)
        outputs: dict[Node, Any] = {}
        leaders: dict[Node, Node] = {}
        scheme = activation_scheme(self.config)
        for node in model.graph.nodes:
            if node in placement.tensors:
                group = placement.groups[node]
                fixed = self._fixed(node, placement)
                divides = self._divides(node, placement)
                spec = pt2e.activation_spec(placement.tensors[node], scheme, fixed, divides)
                outputs[node] = pt2e.shared_with(leaders[group]) if group in leaders else spec
                leaders.setdefault(group, node)
        edges: dict[Node, Node] = {}
        for layer, bits in placement.edges.items():
            tensor = _tensor(layer)
            first = edges.setdefault(tensor, layer)
            spec = pt2e.activation_spec(bits, scheme)
            inputs[layer][tensor] = spec if first is layer else pt2e.shared_with((tensor, first))
        for layer, bits in placement.weight_bits.items():
            if bits != FLOAT:
                kernel = placement.kernels.get(layer)
                whole = is_symmetric(self.config, bits)
                axis = output_axis(layer) if kernel is None or kernel.per_channel else None
                weight: Any = layer.args[1]
                inputs[layer][weight] = pt2e.weight_spec(IntRange.weights(bits, whole), whole, axis)
        for node, end in placement.ends.items():
            node.meta[END] = end
        for node, reason in placement.reasons.items():
            node.meta[REASON] = reason
        for node in model.graph.nodes:
            if node in inputs or node in outputs:
                pt2e.annotate(node, inputs.get(node, {}), outputs.get(node))
        return model

    def _fixed(self, node: Node, placement: Placement) -> tuple[float, float] | None:
        """Step and lowest value of a result that the target prescribes the grid of, unless it shares another's."""
        target = None if self.config.target is None else load(self.config.target)
        alone = list(placement.groups.values()).count(placement.groups[node]) == 1
        grid = None if target is None else target.fixed.get(str(operator_of(node)))
        return None if grid is None or not alone or placement.tensors[node] != 8 else (grid.scale, grid.lowest)

    def _divides(self, node: Node, placement: Placement) -> float | None:
        """What the step of a tensor has to divide so that hardswish is a product of codes."""
        target = None if self.config.target is None else load(self.config.target)
        read = any(user.target is ops.aten.hardswish.default for user in node.users)
        product = target is not None and target.operators.get("hardswish") == "product"
        return THREE if read and product and placement.tensors[node] == 8 else None

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: `plan` only asks for what brecq can do."""


def is_symmetric(config: QuantConfig, bits: int) -> bool:
    """`auto` is symmetric at 8 bits, what int8 kernels need, and asymmetric below, where a lost level counts; with a
    target it is symmetric at the widths that the target says."""
    if config.weight_scheme != "auto":
        return config.weight_scheme == "symmetric"
    return bits == 8 if config.target is None else bits in load(config.target).symmetric


def activation_scheme(config: QuantConfig) -> ActivationScheme:
    """The scheme of activations, with `auto` decided: what the target takes, otherwise asymmetric."""
    target = None if config.target is None else load(config.target)
    needed: ActivationScheme = "signed" if target is not None and target.zero_point == "zero" else "asymmetric"
    return needed if config.activation_scheme == "auto" else config.activation_scheme


def output_axis(layer: Node) -> int:
    """The axis of a weight that counts output channels."""
    if not str(ops.kind(layer)).startswith("conv_transpose"):
        return 0
    # [in, out / groups, ...]: a depthwise one has its channels along axis 0.
    weight = layer.args[1].meta["val"]  # type: ignore[union-attr]
    groups = layer.args[6] if len(layer.args) > 6 else 1
    return 0 if groups == weight.shape[0] and weight.shape[1] == 1 else 1
