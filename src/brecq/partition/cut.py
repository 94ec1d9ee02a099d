"""Partition: cut a graph into the blocks that are reconstructed one after the other.

A block is a contiguous run of operators in program order, so running the blocks in order computes exactly what the
graph computes; what a block needs from farther back (a skip connection, a concatenation) is an extra input.

Dataflow decides what may be a block; the module tree names and groups it (`brecq.partition.tree`). Users may name
blocks.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.fx import GraphModule

from brecq.config import Granularity
from brecq.errors import PartitionError
from brecq.graph import ops
from brecq.graph.dataflow import Dataflow
from brecq.partition.tree import parent, units_of
from brecq.text import some

_STICKY = ops.ELEMENTWISE | {ops.aten.max_pool2d.default, ops.aten.max_pool1d.default}


@dataclass(frozen=True)
class BlockSpec:
    """A named run of operators: positions `start` to `stop` (exclusive) in `Dataflow.ops`.

    `joined` says what was made one block because it could not be cut, and why; empty otherwise.
    """

    name: str
    start: int
    stop: int
    joined: str = ""


def partition(
    graph: GraphModule,
    granularity: Granularity = "block",
    named: Mapping[str, Sequence[str]] | None = None,
    *,
    part: bool = False,
) -> list[BlockSpec]:
    """Cut a captured (or prepared) graph into blocks.

    Args:
        graph: the functional graph of `capture`, before or after fake-quantizers were inserted.
        granularity: `layer` (each weighted operator), `block`, `stage` (blocks of one parent module and one
            resolution) or `net` (everything).
        named: blocks that the user names: block name to module or layer names or patterns.
        part: the graph is a part of a network: small parts are blocks, and blocks of `named` that match nothing in it
            are another part's.

    Returns:
        Blocks in order of execution; each weighted operator is in exactly one of them.

    Raises:
        PartitionError: a pattern of `named` matches nothing, or its block would not be contiguous.
    """
    flow = Dataflow(graph)
    if not flow.ops:
        raise PartitionError("the graph has no operator; nothing can be quantized")
    if part and named:
        named = {name: patterns for name, patterns in named.items() if any(_hits(flow, each) for each in patterns)}
    if granularity == "net" and not named:
        return [BlockSpec("net", 0, len(flow.ops))]
    units: list[str | None]
    alone = granularity == "layer"
    units = [layer if layer else None for layer in flow.layers] if alone else units_of(flow, part)
    if named:
        _apply_names(flow, units, named)
    specs = _merge_illegal(flow, _runs(flow, units))
    if granularity in ("stage", "net"):
        keep = set(named or ())
        specs = _stages(flow, specs, keep) if granularity == "stage" else _everything_else(specs, keep)
    return _unique(specs)


def _runs(flow: Dataflow, units: list[str | None]) -> list[BlockSpec]:
    """Contiguous runs of one unit; operators of no unit go to the unit before (if sticky) or after them."""
    owners = list(units)
    known = [i for i, unit in enumerate(owners) if unit is not None]
    if not known:
        return [BlockSpec("net", 0, len(owners))]
    for i in range(known[0]):
        owners[i] = owners[known[0]]
    for i in range(known[-1] + 1, len(owners)):
        owners[i] = owners[known[-1]]
    for left, right in itertools.pairwise(known):
        boundary = _boundary(flow, left, right)
        for i in range(left + 1, right):
            owners[i] = owners[left] if i < boundary else owners[right]
    specs: list[BlockSpec] = []
    for i, owner in enumerate(owners):
        assert owner is not None
        if specs and specs[-1].name == owner:
            specs[-1] = BlockSpec(owner, specs[-1].start, i + 1)
        else:
            specs.append(BlockSpec(owner, i, i + 1))
    return specs


def _boundary(flow: Dataflow, left: int, right: int) -> int:
    """Where between two weighted operators to cut: behind activation functions, at a place where it is allowed."""
    best = left + 1
    while best < right and flow.ops[best].target in _STICKY:
        best += 1
    after = (i for i in range(best, right + 1) if flow.can_cut(i))
    before = (i for i in range(best, left, -1) if flow.can_cut(i))
    return next(after, next(before, best))


def _merge_illegal(flow: Dataflow, specs: list[BlockSpec]) -> list[BlockSpec]:
    """Join neighbours between which something passes that is not a batch of samples."""
    groups: list[list[BlockSpec]] = []
    for spec in specs:
        if groups and not flow.can_cut(spec.start):
            groups[-1].append(spec)
        else:
            groups.append([spec])
    return [group[0] if len(group) == 1 else _join(flow, group) for group in groups]


def _join(flow: Dataflow, group: list[BlockSpec]) -> BlockSpec:
    name = max(group, key=lambda spec: flow.weighted(spec.start, spec.stop)).name
    node = flow.crossing(group[1].start)
    value = None if node is None else node.meta.get("val")
    shape = list(value.shape) if isinstance(value, Tensor) else "several tensors"
    names = list(dict.fromkeys(spec.name for spec in group))
    listed = ", ".join(names) if len(names) < 5 else f"{names[0]}, {names[1]}, … {names[-1]} ({len(names)})"
    reason = f"{listed} are one block: {'' if node is None else node.name} {shape}, which passes between them, "
    return BlockSpec(name, group[0].start, group[-1].stop, f"{reason}is no batch [N, ...]")


def _stages(flow: Dataflow, specs: list[BlockSpec], keep: set[str]) -> list[BlockSpec]:
    """Join consecutive blocks that have the same parent module and the same output resolution."""
    groups: list[list[BlockSpec]] = []
    for spec in specs:
        key = (parent(spec.name), flow.resolution(spec.stop - 1))
        if groups and spec.name not in keep and groups[-1][-1].name not in keep:
            last = groups[-1][-1]
            if parent(spec.name) and key == (parent(last.name), flow.resolution(last.stop - 1)):
                groups[-1].append(spec)
                continue
        groups.append([spec])
    parents = Counter(parent(group[0].name) for group in groups)
    stages = []
    for group in groups:
        first, last = group[0], group[-1]
        name = first.name
        if len(group) > 1:
            above = parent(first.name)
            begin = re.sub(r"(\.\d+)-\d+$", r"\1", first.name)  # of a block that is a range itself
            end = re.sub(r"^\d+-(\d+)$", r"\1", last.name.rpartition(".")[2])
            name = above if parents[above] == 1 else f"{begin}-{end}"
        stages.append(BlockSpec(name, first.start, last.stop, "; ".join(spec.joined for spec in group if spec.joined)))
    return stages


def _everything_else(specs: list[BlockSpec], keep: set[str]) -> list[BlockSpec]:
    merged: list[BlockSpec] = []
    for spec in specs:
        if merged and spec.name not in keep and merged[-1].name not in keep:
            merged[-1] = BlockSpec("net", merged[-1].start, spec.stop)
        else:
            merged.append(spec if spec.name in keep else replace(spec, name="net"))
    return merged


def _unique(specs: list[BlockSpec]) -> list[BlockSpec]:
    seen: Counter[str] = Counter()
    unique = []
    for spec in specs:
        seen[spec.name] += 1
        name = spec.name if seen[spec.name] == 1 else f"{spec.name}#{seen[spec.name]}"
        unique.append(replace(spec, name=name))
    return unique


def _apply_names(flow: Dataflow, units: list[str | None], named: Mapping[str, Sequence[str]]) -> None:
    """Overwrite the units of the operators that the user's patterns match."""
    for name, patterns in named.items():
        matched: list[int] = []
        for pattern in patterns:
            hits = _hits(flow, pattern)
            if not hits:
                raise PartitionError(
                    f"block {name!r}: {pattern!r} matches no module or layer; there are "
                    f"{some(sorted({layer for layer in flow.layers if layer}), 8)}"
                )
            matched += hits
        first, last = min(matched), max(matched)
        foreign = [i for i in range(first, last + 1) if i not in set(matched) and flow.layers[i]]
        if foreign:
            raise PartitionError(
                f"block {name!r} is not contiguous: layer {flow.layers[foreign[0]]!r} runs between its members; "
                "add it, or split the block"
            )
        if not flow.weighted(first, last + 1):
            raise PartitionError(f"block {name!r}: {', '.join(patterns)} holds no layer; name what it should go with")
        for i in range(first, last + 1):
            units[i] = name
    populated = {unit for unit, layer in zip(units, flow.layers, strict=True) if layer}
    for i, unit in enumerate(units):
        if unit not in populated:  # what is left of a block without its layers goes to its neighbours
            units[i] = None


def _hits(flow: Dataflow, pattern: str) -> list[int]:
    """Positions of the operators that a pattern matches, by their module or layer."""
    return [
        i
        for i, path in enumerate(flow.paths)
        if any(_matches(candidate, pattern) for candidate in (path, flow.layers[i]) if candidate)
    ]


def _matches(path: str, pattern: str) -> bool:
    return path == pattern or path.startswith(f"{pattern}.") or fnmatch.fnmatchcase(path, pattern)
