"""What a bit-width search sees of a network: layers with their shapes, and knobs, the bit-widths to be chosen.

A knob belongs to a fake-quantizer, not to a layer: layers that share a weight, or read the same tensor, turn together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.fx import GraphModule, Node

from brecq.config import FLOAT
from brecq.errors import ConfigError
from brecq.graph import ops
from brecq.graph.counts import macs, of_one, sample_shape
from brecq.graph.dataflow import Dataflow
from brecq.partition.cut import BlockSpec
from brecq.placement.plan import Placement
from brecq.placement.prepare import fake_quantize_node, input_quantizer
from brecq.quant.fake_quant import ActivationFakeQuantize, WeightFakeQuantize
from brecq.text import shown

KnobKind = Literal["weight", "input"]
Quantizer = WeightFakeQuantize | ActivationFakeQuantize


@dataclass(frozen=True)
class Knob:
    """A bit-width to choose: of one weight, or of one activation tensor.

    Attributes:
        name: the first of its layers and its kind, `layer1.0.conv1/weight`.
        layers: that read the weight or the activation. bits: what there is to choose from, ascending; a single
            entry where the width is settled, 32 for float.
    """

    name: str
    kind: KnobKind
    layers: tuple[str, ...]
    bits: tuple[int, ...]

    @property
    def free(self) -> bool:
        return len(self.bits) > 1


@dataclass(frozen=True)
class Layer:
    """A weighted operator as a cost model sees it. Shapes are of one sample, or of a part of it, such as a frame.

    Attributes:
        kind: `conv2d`, `linear`, ... weight_shape: [out, in / groups, ...] ([in, out / groups, ...] transposed).
        weight, input: names of its knobs. macs: multiply-accumulates per sample.
        weight_bytes: of the packed weight with its scales and zero points, per bit-width of a free knob; empty for
            the second and later layers that share a weight, and where the width is settled.
        runs: how many such parts a sample has; 1 if shapes are of all of it.
    """

    name: str
    kind: str
    block: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    macs: int
    weight: str
    input: str
    weight_bytes: Mapping[int, int] = field(default_factory=dict)
    runs: int = 1

    def __post_init__(self) -> None:
        shapes = (self.weight_shape, self.input_shape, self.output_shape, self.stride, self.dilation)
        numbers = [self.groups, self.runs, *(size for shape in shapes for size in shape)]
        if not self.weight_shape or not self.output_shape or min(numbers) < 1 or self.macs < 0:
            raise ConfigError(f"layer {self.name!r} has a size below 1: {shown(self)}")

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial size of the kernel; empty for linear layers."""
        return self.weight_shape[2:]

    @property
    def reduction(self) -> int:
        """Products that one output element sums up (for a transposed convolution: on average over its outputs)."""
        return max(1, self.macs // (self.runs * math.prod(self.output_shape)))

    @property
    def positions(self) -> int:
        """Output elements per channel."""
        channels = self.output_shape[-1] if self.kind == "linear" else self.output_shape[0]
        return self.runs * math.prod(self.output_shape) // channels

    @property
    def channels(self) -> int:
        """Output channels of one group."""
        total = self.output_shape[-1] if self.kind == "linear" else self.output_shape[0]
        return total // self.groups

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Anatomy:
    """Layers and knobs of a prepared graph, and the fake-quantizer of each knob that has one."""

    layers: tuple[Layer, ...]
    knobs: tuple[Knob, ...]
    quantizers: Mapping[str, Quantizer]


def dissect(
    prepared: GraphModule,
    specs: Sequence[BlockSpec],
    placement: Placement,
    weight_bits: Sequence[int],
    input_bits: Sequence[int] | None,
) -> Anatomy:
    """Layers and knobs of a prepared graph.

    Args:
        placement: that the graph was prepared with; widths that it does not take from the general setting (first and
            last layer, rules) are settled, those left in float too. Layers with a kernel of a
            target choose from the widths that it takes.
        weight_bits, input_bits: what the other knobs choose from; `input_bits=None` leaves inputs as they are.
    """
    flow = Dataflow(prepared)
    block_of = {position: spec.name for spec in specs for position in range(spec.start, spec.stop)}
    layers: list[Layer] = []
    users: dict[str, list[str]] = {}
    kinds: dict[str, KnobKind] = {}
    quantizers: dict[str, Quantizer] = {}
    names: dict[object, str] = {}
    taken: dict[str, dict[KnobKind, Collection[int]]] = {
        placement.layers[node]: {"weight": kernel.weights, "input": kernel.activations}
        for node, kernel in placement.kernels.items()
    }
    for position, node in enumerate(flow.ops):
        layer = flow.layers[position]
        if not layer:
            continue
        weight, inputs = fake_quantize_node(prepared, node.args[1]), input_quantizer(prepared, node)
        found: dict[KnobKind, str] = {}
        modules: dict[KnobKind, Quantizer | None] = {"weight": weight, "input": inputs}
        for kind, module in modules.items():
            name = f"{layer}/{kind}" if module is None else names.setdefault(module, f"{layer}/{kind}")
            users.setdefault(name, []).append(layer)
            found[kind], kinds[name] = name, kind
            if module is not None:
                quantizers[name] = module
        layers.append(_layer(node, layer, block_of[position], found["weight"], found["input"]))
    knobs = []
    for name, readers in users.items():
        own = placement.own_weights if kinds[name] == "weight" else placement.own_inputs
        choices = weight_bits if kinds[name] == "weight" else input_bits
        module = quantizers.get(name)
        settled = module is None or choices is None or any(reader in own for reader in readers)
        legal = set(choices or ()).intersection(*(taken[reader][kinds[name]] for reader in readers if reader in taken))
        bits = (_bits(module),) if settled or not legal else tuple(sorted(legal))
        knobs.append(Knob(name, kinds[name], tuple(readers), bits))
    return Anatomy(tuple(layers), tuple(knobs), quantizers)


def _bits(module: Any) -> int:
    return FLOAT if module is None or not module.enabled else int(module.range.bits)


def _layer(node: Node, name: str, block: str, weight: str, inputs: str) -> Layer:
    input_shape, output_shape = sample_shape(node.args[0]), sample_shape(node)  # type: ignore[arg-type]
    runs = 1
    if ops.kind(node) != "linear" and len(of_one(node)) == len(output_shape):  # frames are among the samples
        (runs, *_), input_shape, output_shape = output_shape, input_shape[1:], output_shape[1:]
    weight_shape = tuple(int(size) for size in node.args[1].meta["val"].shape)  # type: ignore[union-attr]
    stride, dilation, groups = _geometry(node, len(weight_shape) - 2)
    return Layer(
        name=name,
        kind=str(ops.kind(node)),
        block=block,
        weight_shape=weight_shape,
        input_shape=input_shape,
        output_shape=output_shape,
        stride=stride,
        dilation=dilation,
        groups=groups,
        macs=macs(node),
        weight=weight,
        input=inputs,
        runs=runs,
    )


def _geometry(node: Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Stride, dilation and groups; empty and 1 for linear layers."""
    kind = str(ops.kind(node))
    if kind == "linear":
        return (), (), 1

    def argument(index: int, default: Any) -> Any:
        return node.args[index] if len(node.args) > index else default

    def spread(value: Any) -> tuple[int, ...]:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        return tuple(int(v) for v in (values * rank)[:rank])

    transposed = kind.startswith("conv_transpose")
    dilation, groups = (argument(7, 1), argument(6, 1)) if transposed else (argument(5, 1), argument(6, 1))
    return spread(argument(3, 1)), spread(dilation), int(groups)
