"""Compensated start: codes, steps and biases of a block's layers in closed form, see `brecq.quant.compensate`.

The layers are done in the order of the program, each on the input that it gets from those before it, as they are then.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from brecq.graph import ops
from brecq.graph.geometry import geometry_of
from brecq.graph.prepare import fake_quantize_node
from brecq.quant.compensate import Moments, MomentSum, compensate, mixed
from brecq.quant.fake_quant import BiasFakeQuantize, Start, WeightFakeQuantize
from brecq.reconstruct.learnables import make_room
from brecq.reconstruct.sampler import learned_from
from brecq.reconstruct.site import Site

SAMPLES = 16
"""Run at a time: the inputs of a layer from both streams are held at once."""

PATCHES = 1_000
"""Patches of its input that a layer's moments are taken from, for each weight that an output channel has: where there
are more, positions are left out, as neighbouring ones say the same."""

DISTRUST = 32.0
"""How fast the damping grows where patches are few for the weights of an output channel: it doubles at one weight for
so many patches."""


@torch.no_grad()
def compensated_weights(site: Site) -> None:
    """Set codes and grids of the block's weights, and the biases beside them; weights with a start already keep it."""
    layers = _layers(site.block.module)
    values, solved = dict(site.mine.biases.values()), []
    for module, weight in site.mine.weights.values():
        if module.codes is not None or module.start is not None or module not in layers:
            continue
        uses = layers[module]
        geometry = geometry_of(uses[0])
        rows = geometry.rows(weight)
        moments = _moments(site, uses, PATCHES * rows.shape[2])
        parts = [(count, one.central() if bias in values else one) for bias, (count, one) in moments.items()]
        scarcity = rows.shape[2] / sum(count for count, _ in parts)
        damping = site.recipe.damping * (1 + DISTRUST * scarcity)
        solution = compensate(weight, geometry, mixed(parts), module.grid, symmetric=module.symmetric, damping=damping)
        module.grid, module.codes = solution.grid, solution.codes
        solved.append((module, solution))
        quantized = geometry.rows(solution.grid.dequantize(solution.codes))
        for bias, (_, one) in moments.items():
            if bias in values:
                bias.learned = values[bias] + one.bias_shift(rows, quantized).float()
    make_room(site.block.module)
    for module, solution in solved:
        module.start = Start(solution.weight, module.integers(solution.weight))


def _layers(block: GraphModule) -> dict[WeightFakeQuantize, list[Node]]:
    """The operators that read each weight, in the order of the program."""
    found: dict[WeightFakeQuantize, list[Node]] = defaultdict(list)
    for node in block.graph.nodes:
        if ops.kind(node):
            module = fake_quantize_node(block, node.args[1])
            if isinstance(module, WeightFakeQuantize):
                found[module].append(node)
    return found


def _moments(site: Site, uses: Sequence[Node], patches: int) -> dict[BiasFakeQuantize | None, tuple[int, Moments]]:
    """Of the inputs of one weight's uses, from `patches` patches or all; those beside the same bias together, with the
    number of them."""
    block, streams = site.block, site.streams
    sums: dict[BiasFakeQuantize | None, MomentSum] = defaultdict(MomentSum)
    chosen = learned_from(streams.samples, site.held)[: site.recipe.range_samples]
    for number, index in enumerate(chosen.split(SAMPLES)):
        found: list[dict[Node, Tensor]] = []
        for stream in ("quantized", "float"):
            streams.set_mode(stream, block)
            found.append(inputs_of(block.module, uses, streams.read(stream, block.inputs, index)))
        for node in uses:
            bias = fake_quantize_node(block.module, node.args[2]) if len(node.args) > 2 else None
            geometry, x_q = geometry_of(node), found[0][node]
            every = geometry.every(x_q, len(chosen), patches)
            sums[bias].add(geometry, x_q, found[1][node], every, number)
    return {bias: (total.count, total.moments()) for bias, total in sums.items()}


def inputs_of(module: GraphModule, layers: Sequence[Node], inputs: Sequence[Tensor]) -> dict[Node, Tensor]:
    """The inputs that `layers`, operators of `module`, get when it runs on `inputs`; it runs no further than that."""
    recorder = _Recorder(module, layers)
    with contextlib.suppress(_Found):
        recorder.run(*inputs)
    return recorder.found


class _Found(Exception):
    """Everything that was wanted is known."""


class _Recorder(Interpreter):
    def __init__(self, module: GraphModule, layers: Sequence[Node]) -> None:
        super().__init__(module)
        self.wanted = set(layers)
        self.found: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if n in self.wanted:
            self.found[n] = self.env[cast(Node, n.args[0])]
            if len(self.found) == len(self.wanted):
                raise _Found
        return super().run_node(n)
