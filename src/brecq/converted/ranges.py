"""Ranges of the tensors that reconstruction leaves in float, recorded while the calibration data is at hand.

Stored with a result, they let it be completed for an integer runtime without any data.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from brecq import ranks
from brecq.converted import rewrite
from brecq.converted.grids import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE, Grid, activations
from brecq.converted.plan import tensors_to_complete
from brecq.errors import CheckpointError
from brecq.graph import ops
from brecq.graph.dataflow import constants
from brecq.quant.affine import IntRange
from brecq.quant.fake_quant import ActivationFakeQuantize, Mode
from brecq.ranks import Share

SAMPLES = 256
"""Calibration samples that ranges are taken from."""

BITS = 8


@dataclass(frozen=True)
class FloatRange:
    """The 8-bit grid that would cover a tensor which a converted program leaves in float.

    Attributes:
        position: of the tensor's node in `measured` of the program. op: the node's operator, for checking.
        scale, zero_point: value = (code - zero_point) * scale for codes 0..255, or -128..127 where they are `signed`.
    """

    position: int
    op: str
    scale: float
    zero_point: int
    signed: bool = False

    def grid(self) -> Grid:
        return _grid(self.scale, self.zero_point, self.signed)


@torch.no_grad()
def record(
    converted: GraphModule,
    inputs: Sequence[Tensor],
    device: torch.device | str,
    norm: float = 2.4,
    candidates: int = 100,
    signed: bool = False,
    share: Share | None = None,
) -> list[FloatRange]:
    """Run up to 256 of the `inputs` (each [N, ...], of `share`) through a converted program and choose a range for
    every tensor that an integer runtime may want quantized: that with the smallest Lp error, as for all activations.

    Constants need no data: `constant_grid` covers them when a program is completed.

    Args:
        signed: codes around 0, with zero point 0.
    """
    program = GraphModule(converted, copy.deepcopy(converted.graph))
    rewrite.gather_quantizers(program)
    positions = {node: position for position, node in enumerate(measured(program.graph))}
    nodes = [node for node in tensors_to_complete(program, linear_outputs=True) if node.op != "get_attr"]
    if not nodes:
        return []
    observers = {node: _observer(signed) for node in nodes}
    run = _Recorder(program, observers)
    for unit in (Share(len(inputs[0])) if share is None else share).units(SAMPLES):
        for observer in observers.values():
            observer.observer.begin(unit.number)
        run.run(*(value[unit.rows].to(device) for value in inputs))
    for seen in ranks.current().gather([observer.observer for observer in observers.values()]):
        for quantizer, other in zip(observers.values(), seen, strict=True):
            quantizer.observer.absorb([other])
    found = []
    for node, observer in observers.items():
        observer.initialize(norm, candidates)
        grid = observer.grid
        found.append(FloatRange(positions[node], operator_name(node), grid.scale.item(), int(grid.zero_point), signed))
    return found


def measured(graph: Graph) -> list[Node]:
    """The tensors that a range can be recorded for: `grids.activations`, and behind them whatever operators compute
    from constants alone. A position in this list is a lasting name, as one in `activations` is."""
    found = activations(graph)
    known, skipped = set(found), {QUANTIZE, DEQUANTIZE, DEQUANTIZE_CHANNELS}
    fixed = constants(graph)
    return found + [
        node
        for node in graph.nodes
        if node.op == "call_function" and node in fixed and node not in known and node.target not in skipped
    ]


def constant_grid(value: Tensor, signed: bool = False) -> Grid:
    """The 8-bit grid that covers a constant."""
    observer = _observer(signed)
    observer(value)
    observer.initialize(2.4, 100)
    return _grid(observer.grid.scale.item(), int(observer.grid.zero_point), signed)


def _observer(signed: bool) -> ActivationFakeQuantize:
    scheme, dtype = (torch.per_tensor_symmetric, torch.int8) if signed else (torch.per_tensor_affine, torch.uint8)
    observer = ActivationFakeQuantize(IntRange.activations(BITS, signed=signed), scheme, dtype=dtype)
    observer.mode = Mode.OBSERVE
    return observer


def _grid(scale: float, zero_point: int, signed: bool) -> Grid:
    range = IntRange.activations(BITS, signed=signed)
    return Grid(scale, zero_point, range.low, range.high, torch.int8 if signed else torch.uint8)


class _Recorder(Interpreter):
    def __init__(self, module: GraphModule, observers: Mapping[Node, ActivationFakeQuantize]) -> None:
        super().__init__(module)
        self.observers = observers

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.observers:
            self.observers[n](value)
        return value


def resolve(program: GraphModule, ranges: Sequence[FloatRange]) -> dict[Node, Grid]:
    """The recorded grids by node of a program, also after it was exported, saved and loaded.

    Raises:
        CheckpointError: the ranges belong to another program.
    """
    nodes = measured(program.graph)
    found = {}
    for range in ranges:
        if range.position >= len(nodes) or operator_name(nodes[range.position]) != range.op:
            raise CheckpointError(
                f"the recorded range of operator {range.position} ({range.op}) does not fit the program; "
                "quantize again with this version of brecq"
            )
        found[nodes[range.position]] = range.grid()
    return found


def operator_name(node: Node) -> str:
    """The operator of a node, `input` for network inputs."""
    return "input" if node.op == "placeholder" else ops.op_name(node)
