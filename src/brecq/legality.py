"""`check`: what a target makes of a network, before any work: legal widths, what stays float, what is refused."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from brecq.capture.export import capture, example_batch
from brecq.checks import check_inputs, check_request, check_weights
from brecq.config import FLOAT, QuantConfig
from brecq.errors import ConfigError
from brecq.float32 import in_float32
from brecq.forward import Inputs
from brecq.graph import ops
from brecq.graph.counts import macs, of_one
from brecq.graph.environment import learning
from brecq.graph.integer import CLAMPS, operands, operator_of
from brecq.pipeline import quantize
from brecq.placement.prepare import fake_quantize_node, grid_of, prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.placement.targeted import layer_kind
from brecq.rehearsal import refusal
from brecq.targets import Target


@dataclass(frozen=True)
class LayerLegality:
    """One layer and its kernel on the target.

    Attributes:
        weights, activations: bits that it will have, 32 for float. stored: bits of a weight in the file.
        computes: what its kernel multiplies, `float` without one. reason: why its bits are not those asked for.
        parameters: numbers in its weight. macs: multiply-accumulates a sample.
    """

    layer: str
    kind: str
    weights: int
    activations: int
    stored: int
    computes: str
    reason: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class FloatOperator:
    """Operators without a weight that stay in float: how many of a kind, and the numbers they write a sample."""

    op: str
    count: int
    elements: int


@dataclass(frozen=True)
class Legality:
    """What a target makes of a network. `weight_bytes`: of all weights in the file, their scales aside.

    Attributes:
        refused: why its format will not take the network, in a line; empty if it does. It was exported once, rounded
            to nearest, where the format's packages are installed.
    """

    target: str
    layers: list[LayerLegality]
    floats: list[FloatOperator]
    refused: str = ""

    @property
    def weight_bytes(self) -> int:
        return math.ceil(sum(layer.parameters * layer.stored for layer in self.layers) / 8)

    @property
    def float_macs(self) -> float:
        """Share of the multiply-accumulates that run in float, in percent."""
        total = sum(layer.macs for layer in self.layers)
        return 100 * sum(layer.macs for layer in self.layers if layer.computes == "float") / max(total, 1)


@learning()
def check(model: nn.Module, example_inputs: Inputs, config: QuantConfig, *, rehearse: bool = True) -> Legality:
    """Which layers are legal at which widths on `config.target`, and what stays float.

    Args:
        example_inputs: as `brecq.inspect` takes them. config: the widths asked for, and a target.
        rehearse: also write the network once, rounded, to learn what the export refuses (`refused`).

    Raises:
        ConfigError: no target, or it has no kernel for what is asked for. DataError, CaptureError.
    """
    check_request(model, config, QuantConfig)
    if config.runtime is None:
        raise ConfigError("there is no target to check for; give one, such as QuantConfig(target='onnxruntime')")
    check_weights(model)
    model, _ = in_float32(model)
    target, inputs = config.runtime, check_inputs(model, example_inputs)
    refused = refusal(quantize, model, inputs, config) if rehearse else ""
    quantizer = BrecqQuantizer(config)
    prepared = prepare(capture(model, example_batch(inputs)), quantizer)
    placement = quantizer.placement
    assert placement is not None
    layers = []
    for node, name in placement.layers.items():
        kernel = placement.kernels.get(node)
        weights, activations = placement.weight_bits[node], placement.input_bits[node]
        if kernel is None and weights != FLOAT:
            kernel = target.kernel(layer_kind(node), weights, activations)
        layers.append(
            LayerLegality(
                name,
                layer_kind(node),
                weights,
                activations,
                weights if kernel is None else kernel.stored.get(weights, weights),
                "float" if kernel is None else kernel.computes,
                placement.reasons.get(node, ""),
                _weight(node).numel(),
                macs(node),
            )
        )
    return Legality(target.name, layers, _floats(prepared, target), refused)


def _weight(layer: Node) -> torch.Tensor:
    weight: Any = layer.args[1]
    found: torch.Tensor = weight.meta["val"]
    return found


def _floats(prepared: GraphModule, target: Target) -> list[FloatOperator]:
    counts: dict[str, list[int]] = defaultdict(list)
    for node in prepared.graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or ops.kind(node) or ops.moves(node) or ops.is_size(node):
            continue
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        if not _on_codes(prepared, node, target):
            counts[ops.op_name(node)].append(math.prod(of_one(node)))
    return [FloatOperator(name, len(sizes), sum(sizes)) for name, sizes in counts.items()]


def _on_codes(prepared: GraphModule, node: Node, target: Target) -> bool:
    """True if an operator is computed on codes, or as a part of the kernel before or the quantizer behind it."""
    if all(source.op == "get_attr" for source in node.all_input_nodes):
        return True  # a constant
    end = node
    while len(end.users) == 1 and next(iter(end.users)).target in CLAMPS:
        end = next(iter(end.users))
    quantized = any(fake_quantize_node(prepared, user) is not None for user in end.users)
    if node.target in CLAMPS:
        return quantized
    rule = target.operators.get(str(operator_of(node)))
    if node.target in ops.CONCAT:
        return rule is not None and grid_of(prepared, node) is not None
    if rule is None or not quantized:
        return False
    floats = [operand for operand in operands(node) if grid_of(prepared, operand) is None]
    return not floats or (rule == "residual" and len(floats) == 1 and ops.kind(floats[0]) is not None)
