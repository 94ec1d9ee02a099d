"""The quantizer that PT2E asks: what `placement.plan` decided, written onto a captured graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import Quantizer

from brecq.config import FLOAT, ActivationScheme, QuantConfig
from brecq.graph import ops
from brecq.graph.integer import THREE, operator_of
from brecq.placement import pt2e
from brecq.placement.plan import END, REASON, End, Placement, input_of, plan
from brecq.quant.affine import IntRange


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
            tensor = input_of(layer)
            first = edges.setdefault(tensor, layer)
            spec = pt2e.activation_spec(bits, scheme)
            inputs[layer][tensor] = spec if first is layer else pt2e.shared_with((tensor, first))
        axes = _axes(placement.weight_bits)
        for layer, bits in placement.weight_bits.items():
            if bits != FLOAT:
                kernel = placement.kernels.get(layer)
                whole = is_symmetric(self.config, bits)
                weight: Any = layer.args[1]
                single = len(axes[weight.target]) == 1 and (kernel is None or kernel.per_channel)
                axis = output_axis(layer) if single else None
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
        target = self.config.runtime
        alone = list(placement.groups.values()).count(placement.groups[node]) == 1
        grid = None if target is None else target.fixed.get(str(operator_of(node)))
        return None if grid is None or not alone or placement.tensors[node] != 8 else (grid.scale, grid.lowest)

    def _divides(self, node: Node, placement: Placement) -> float | None:
        """What the step of a tensor has to divide so that hardswish is a product of codes."""
        target = self.config.runtime
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
    return bits == 8 if config.runtime is None else bits in config.runtime.symmetric


def activation_scheme(config: QuantConfig) -> ActivationScheme:
    """The scheme of activations, with `auto` decided: what the target takes, otherwise asymmetric."""
    target = config.runtime
    needed: ActivationScheme = "signed" if target is not None and target.zero_point == "zero" else "asymmetric"
    return needed if config.activation_scheme == "auto" else config.activation_scheme


def _axes(layers: Iterable[Node]) -> dict[Any, set[int]]:
    """Along which axes each weight, by its target, has the outputs of the layers that read it.

    A convolution and the transposed one that undoes it may share a weight, and differ in this. Steps along the one's
    outputs are steps along the other's inputs, which no integer kernel has: such a weight gets one step in all.
    """
    found: dict[Any, set[int]] = defaultdict(set)
    for layer in layers:
        found[layer.args[1].target].add(output_axis(layer))  # type: ignore[union-attr]
    return found


def output_axis(layer: Node) -> int:
    """The axis of a weight that counts output channels."""
    if not str(ops.kind(layer)).startswith("conv_transpose"):
        return 0
    # [in, out / groups, ...]: a depthwise one has its channels along axis 0.
    weight = layer.args[1].meta["val"]  # type: ignore[union-attr]
    groups = layer.args[6] if len(layer.args) > 6 else 1
    return 0 if groups == weight.shape[0] and weight.shape[1] == 1 else 1
