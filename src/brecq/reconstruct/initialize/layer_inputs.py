"""What the closed form sees of a layer's inputs: second moments or patches, from all samples and of all processes."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from brecq import ranks
from brecq.graph import ops
from brecq.graph.geometry import geometry_of, patches_of_sample
from brecq.graph.shapes import captured_samples
from brecq.placement.prepare import fake_quantize_node
from brecq.quant.compensate import Inputs, Moments, MomentSum, SampleSum, form
from brecq.quant.fake_quant import BiasFakeQuantize, WeightFakeQuantize
from brecq.reconstruct.initialize.biases import bias_of
from brecq.reconstruct.sampler import learned_from
from brecq.reconstruct.site import Site

PATCHES = 1_000
"""Patches of its input that a layer's moments are taken from, for each weight that an output channel has: where there
are more, positions are left out, as neighbouring ones say the same."""


def layer_inputs(site: Site, uses: Sequence[Node], rows: Tensor) -> dict[BiasFakeQuantize | None, Inputs]:
    """Of the inputs of one weight's uses; those beside the same bias together. `rows`: of the weight, [G, R, K]."""
    block, streams = site.block, site.streams
    chosen = _chosen(site)
    samples = sum(len(index) for index in chosen)
    few = form.keeps_patches(rows.shape[2], samples * patches_of(block.module, uses))
    wanted = form.MOST // len(uses) if few else PATCHES * rows.shape[2]
    beside = {node: bias_of(block.module, node) for node in uses}
    sums: dict[BiasFakeQuantize | None, MomentSum | SampleSum]
    sums = {bias: SampleSum() if few else MomentSum() for bias in beside.values()}
    for number, index in enumerate(chosen):
        mine = streams.share.mine(index)
        for part in streams.slices(block, slice(0, len(mine))):
            found: list[dict[Node, Tensor]] = []
            for stream in ("quantized", "float"):
                streams.set_mode(stream, block)
                found.append(inputs_of(block.module, uses, streams.read(stream, block.inputs, mine[part])))
            for node in uses:
                geometry, x_q = geometry_of(node), found[0][node]
                total = geometry.total(x_q, part.stop - part.start, samples)
                every = geometry.every(total, wanted, most=few) if few or geometry.kernel else 1
                sums[beside[node]].add(geometry, x_q, found[1][node], every, number)
    return {bias: _of_all(total, rows) for bias, total in sums.items()}


def readers(graph: GraphModule) -> dict[WeightFakeQuantize, list[Node]]:
    """The operators that read each weight, in the order of the program."""
    found: dict[WeightFakeQuantize, list[Node]] = defaultdict(list)
    for node in graph.graph.nodes:
        if ops.kind(node):
            module = fake_quantize_node(graph, node.args[1])
            if isinstance(module, WeightFakeQuantize):
                found[module].append(node)
    return found


def patches_of(graph: GraphModule, uses: Sequence[Node]) -> int:
    """How many patches the uses of a weight see in all, for each sample."""
    return sum(patches_of_sample(node, captured_samples(graph.graph)) for node in uses)


def _chosen(site: Site) -> list[Tensor]:
    """About `range_samples` samples that are learned from, unit by unit, int64, those of all processes."""
    learned = learned_from(site.streams.samples, site.held)
    wanted = round(site.recipe.range_samples * site.streams.samples / len(learned))
    units = (unit.rows for unit in site.streams.share.every_unit(wanted))
    parts = (learned[(learned >= rows.start) & (learned < rows.stop)] for rows in units)
    return [part for part in parts if len(part)] or [learned[: site.recipe.range_samples]]


def _of_all(mine: MomentSum | SampleSum, rows: Tensor) -> Inputs:
    """What all processes added: the sum of their moments, or the patches of all, in the order of the samples."""
    together = ranks.current()
    if together.size == 1:
        return mine.found()
    if isinstance(mine, SampleSum):
        every = together.gather(([x.cpu() for x in mine.patches], [x.cpu() for x in mine.reference]))
        patches, reference = ([x.to(rows.device) for one in every for x in one[i]] for i in (0, 1))
        return SampleSum(patches, reference).found()
    count = int(together.total(mine.count)[0])
    one = mine.found() if mine.count else Moments.zeros(rows.shape, rows.device)
    share = mine.count / count
    gram, cross, mean, float_mean = (value * share for value in (one.gram, one.cross, one.mean, one.float_mean))
    together.sum((gram, cross, mean, float_mean))
    return Moments(gram, cross, mean, float_mean, count)


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
