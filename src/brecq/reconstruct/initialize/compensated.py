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

from brecq import ranks
from brecq.graph import ops
from brecq.graph.geometry import geometry_of
from brecq.graph.prepare import fake_quantize_node
from brecq.quant.compensate import Moments, MomentSum, compensate, mixed
from brecq.quant.fake_quant import BiasFakeQuantize, Start, WeightFakeQuantize
from brecq.reconstruct.initialize.biases import bias_of
from brecq.reconstruct.learnables import make_room
from brecq.reconstruct.sampler import learned_from
from brecq.reconstruct.site import Site

PATCHES = 1_000
"""Patches of its input that a layer's moments are taken from, for each weight that an output channel has: where there
are more, positions are left out, as neighbouring ones say the same."""

DISTRUST = 32.0
"""How fast the damping grows where patches are few for the weights of an output channel: it doubles at one weight for
so many patches."""

NOISY = 4, 7
"""At least so many bits in weights and at most so many in activations: what an input lost is mostly rounding noise."""

ENOUGH = 50
"""Steps a block that correct what a start can leave to them."""


@torch.no_grad()
def compensated_weights(site: Site) -> None:
    """Set codes and grids of the block's weights, and the biases beside them; weights with a start already keep it."""
    layers = _layers(site.block.module)
    values, solved, share = dict(site.mine.biases.values()), [], _correction(site)
    for module, weight in site.mine.weights.values():
        if module.codes is not None or module.start is not None or module not in layers:
            continue
        uses = layers[module]
        geometry = geometry_of(uses[0])
        rows = geometry.rows(weight)
        moments = _moments(site, uses, rows)
        for bias, (count, one) in moments.items():
            moments[bias] = count, (one.central() if bias in values else one).corrected(share)
        parts = list(moments.values())
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


def _correction(site: Site) -> float:
    """`Recipe.correction`, or what it is by default (docs/results.md, "What recipes are chosen by")."""
    if site.recipe.correction is not None:
        return site.recipe.correction
    if not site.streams.quantizes_activations:
        return 1.0
    noisy = site.streams.weight_bits >= NOISY[0] and site.streams.activation_bits <= NOISY[1]
    return 0.0 if noisy and site.recipe.steps >= ENOUGH else 0.5


def _layers(block: GraphModule) -> dict[WeightFakeQuantize, list[Node]]:
    """The operators that read each weight, in the order of the program."""
    found: dict[WeightFakeQuantize, list[Node]] = defaultdict(list)
    for node in block.graph.nodes:
        if ops.kind(node):
            module = fake_quantize_node(block, node.args[1])
            if isinstance(module, WeightFakeQuantize):
                found[module].append(node)
    return found


def _moments(site: Site, uses: Sequence[Node], rows: Tensor) -> dict[BiasFakeQuantize | None, tuple[int, Moments]]:
    """Of the inputs of one weight's uses; those beside the same bias together, with the number of patches they are
    from. `rows`: of the weight, [G, R, K]."""
    patches = PATCHES * rows.shape[2]
    block, streams = site.block, site.streams
    beside = {node: bias_of(block.module, node) for node in uses}
    sums = {bias: MomentSum() for bias in beside.values()}
    chosen = _chosen(site)
    samples = sum(len(index) for index in chosen)
    for number, index in enumerate(chosen):
        mine = streams.share.mine(index)
        for part in streams.slices(block, slice(0, len(mine))):
            found: list[dict[Node, Tensor]] = []
            for stream in ("quantized", "float"):
                streams.set_mode(stream, block)
                found.append(inputs_of(block.module, uses, streams.read(stream, block.inputs, mine[part])))
            for node in uses:
                geometry, x_q = geometry_of(node), found[0][node]
                every = geometry.every(x_q, samples, patches)
                sums[beside[node]].add(geometry, x_q, found[1][node], every, number)
    return {bias: _of_all(total, rows) for bias, total in sums.items()}


def _chosen(site: Site) -> list[Tensor]:
    """About `range_samples` samples that are learned from, unit by unit, int64, those of all processes."""
    learned = learned_from(site.streams.samples, site.held)
    wanted = round(site.recipe.range_samples * site.streams.samples / len(learned))
    units = (unit.rows for unit in site.streams.share.every_unit(wanted))
    parts = (learned[(learned >= rows.start) & (learned < rows.stop)] for rows in units)
    return [part for part in parts if len(part)] or [learned[: site.recipe.range_samples]]


def _of_all(mine: MomentSum, rows: Tensor) -> tuple[int, Moments]:
    """The moments of what all processes added, with the number of patches."""
    together = ranks.current()
    if together.size == 1:
        return mine.count, mine.moments()
    count = int(together.total(mine.count)[0])
    one = mine.moments() if mine.count else Moments.zeros(rows.shape, rows.device)
    parts = [value * (mine.count / count) for value in (one.gram, one.cross, one.mean, one.float_mean)]
    together.sum(parts)
    return count, Moments(*parts)


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
