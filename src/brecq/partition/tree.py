"""The module tree of a network, seen through its dataflow: which modules are the blocks.

- A *join region* is a stretch between two points where a single activation is live that contains an operator with two
  activation inputs: a residual block, an Inception module, an attention block. The module that owns it is a block.
- A module that holds several such modules, or several equal sequential ones, is a container (a stage, a U-Net): its
  children are the blocks. One of few layers is a block all the same (C3k with its bottlenecks, a ghost bottleneck).
- A network that returns several activations is a container, as one is that joins its heads, and as is what holds a
  part of a network. So is a module that alone holds all layers in it, if it is no block (a backbone's pyramid).
- Modules of the same class or of the same position as a block are blocks too (an inverted residual without a skip).
- Every other weighted operator is a block of its own, together with the activation function and pooling behind it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from brecq.graph import ops
from brecq.graph.dataflow import Dataflow

MAX_REGION = 8
"""Weighted operators that a region outside any module may hold before it is split into single layers, and that a
module with a join of its own may hold before the modules in it are blocks instead."""

MAX_CHAIN = 8
"""Layers that a sequential child of a container may hold before it is split into them: a head that runs once a level
is no longer for that."""

MAX_RUN = 4
"""Weighted operators of a flat list that are one block where nothing joins them, at one resolution."""

FLAT = 12
"""Layers right under one module that make it a flat list: the code runs them one by one, with routes of its own."""

_GENERIC = {"Sequential", "ModuleList", "ModuleDict", "Module", "Identity"}


def units_of(flow: Dataflow, part: bool = False) -> list[str | None]:
    """For each operator the block it belongs to, or `None` where the neighbours decide.

    `part`: the graph is a part of a network.
    """
    return _Tree(flow, part).units()


def parent(path: str) -> str:
    """The path of the module that holds this one; empty for those of the network itself."""
    return path.rpartition(".")[0]


def _common(paths: Sequence[str]) -> str:
    """The deepest module path that contains all `paths`."""
    common = paths[0].split(".")
    for path in paths[1:]:
        parts = path.split(".")
        same = (i for i, (a, b) in enumerate(zip(common, parts, strict=False)) if a != b)
        common = common[: next(same, min(len(common), len(parts)))]
    return ".".join(common)


class _Tree:
    """The module tree seen through the dataflow: finds the modules that are blocks."""

    def __init__(self, flow: Dataflow, part: bool) -> None:
        self.flow, self.part = flow, part
        self.spans: dict[str, tuple[int, int]] = {}  # first call of each module
        self.types: dict[str, str] = {}
        self._measure()
        self.children: dict[str, list[str]] = {path: [] for path in ["", *self.spans]}
        for path in self.spans:
            if path in self.types:  # called itself: no module list
                self.children[self._caller(path)].append(path)

    def units(self) -> list[str | None]:
        """For each operator the block it belongs to, or `None` where the neighbours decide."""
        blocks = self._blocks()
        units: list[str | None] = []
        for path, layer in zip(self.flow.paths, self.flow.layers, strict=True):
            owner = next((prefix for prefix in _prefixes(path) if prefix in blocks), None)
            # A layer alone is named after the outermost module that holds nothing else: `head` for `head.fc`.
            alone = next((p for p in _prefixes(path) if p in self.types and self._weighted(p) == 1), None)
            units.append(owner or alone or layer or None)
        self._functional_regions(units, blocks)
        return units

    def _measure(self) -> None:
        for i, (node, path) in enumerate(zip(self.flow.ops, self.flow.paths, strict=True)):
            self.types.update(ops.module_types(node))
            for prefix in _prefixes(path):
                start, stop = self.spans.get(prefix, (i, i))
                if i <= stop:  # still the first call
                    self.spans[prefix] = (start, i + 1)

    def _caller(self, path: str) -> str:
        """The nearest enclosing module that was itself called (module lists are not)."""
        return next((p for p in reversed(list(_prefixes(parent(path)))) if p in self.types), "")

    def _weighted(self, path: str) -> int:
        return self.flow.weighted(*self.spans[path])

    def _blocks(self) -> set[str]:
        joins = {path for path, span in self.spans.items() if path and self._joins(path, *span)}
        wholes = {path for path in joins if self._weighted(path) <= MAX_REGION and not self._is_list(path, joins)}
        outer = {path for path in joins if not _within(path, wholes)}
        containers = {path for path in outer - wholes if self._is_container(path, outer)}
        atoms = outer - containers
        blocks = {path for path in atoms if not _within(path, atoms)}
        if self._joins("", 0, len(self.flow.ops)) or self.flow.outputs > 1 or self.part:
            containers |= self._around(joins, blocks)
        for container in containers:
            blocks |= {child for child in self._composite_children(container) if self._is_small(child, joins)}
        return self._with_alike(blocks, containers)

    def _around(self, joins: set[str], blocks: set[str]) -> set[str]:
        """The network, and each module inside it that holds all of its layers and is no block."""
        around, path, total = {""}, "", self.flow.weighted(0, len(self.flow.ops))
        while True:
            whole = [child for child in self._composite_children(path) if self._weighted(child) == total]
            if not whole or whole[0] in blocks or self._is_small(whole[0], joins):
                return around
            path = whole[0]
            around.add(path)

    def _is_small(self, path: str, joins: set[str]) -> bool:
        """True if a module joins nothing, nor do those in it, and is no long chain."""
        inner = any(join == path or join.startswith(f"{path}.") for join in joins)
        return not inner and not (self._is_chain(path) and self._distinct(path) > MAX_CHAIN)

    def _joins(self, path: str, start: int, stop: int) -> bool:
        """True if `path` itself owns a join region with a weighted operator."""
        return any(
            _common(self.flow.paths[a:b]) == path and self.flow.weighted(a, b) and self.flow.has_join(a, b)
            for a, b in self.flow.regions(start, stop)
        )

    def _is_container(self, path: str, joins: set[str]) -> bool:
        if self._only_calls(path):
            return True
        inside = Counter(self.types.get(p, "") for p in joins if p.startswith(f"{path}."))
        children = Counter(self.types.get(p, "") for p in self._composite_children(path))
        if self._weighted(path) <= 2 * MAX_REGION:  # two branches written as Sequential are still one block
            for generic in _GENERIC:
                children.pop(generic, None)
        return max([*inside.values(), *children.values(), 0]) >= 2

    def _only_calls(self, path: str) -> bool:
        """True if a module joins nothing itself and all its layers are in two or more modules: heads side by side."""
        inside = range(*self.spans[path])
        if any(self.flow.paths[i] == path and len(self.flow.inputs[i]) > 1 for i in inside):
            return False
        return self._in_children(path, self._composite_children(path))

    def _is_list(self, path: str, joins: set[str]) -> bool:
        """True if a module only lists blocks: heads side by side, or equal sequential modules (dense layers)."""
        children = [child for child in self._composite_children(path) if child not in joins]
        alike = len({self.types.get(child, "") for child in children}) == 1
        return self._only_calls(path) or (alike and self._in_children(path, children))

    def _in_children(self, path: str, children: Sequence[str]) -> bool:
        """True if all layers of a module are in these modules in it, two or more."""
        if len(children) < 2:
            return False
        held = sum(layer.startswith(f"{path}.") for layer in self.flow.layers)
        within = sum(any(layer.startswith(f"{child}.") for child in children) for layer in self.flow.layers)
        return held == within

    def _composite_children(self, path: str) -> list[str]:
        return [child for child in self.children[path] if self._weighted(child) >= 2]

    def _is_chain(self, path: str) -> bool:
        regions = self.flow.regions(*self.spans[path])
        return not any(self.flow.weighted(a, b) and self.flow.has_join(a, b) for a, b in regions)

    def _distinct(self, path: str) -> int:
        """Layers of a module, each counted once however often it runs."""
        start, stop = self.spans[path]
        return len({layer.partition("#")[0] for layer in self.flow.layers[start:stop] if layer})

    def _with_alike(self, blocks: set[str], containers: set[str]) -> set[str]:
        """Add modules of the same class or the same position as a block; they replace the blocks inside them."""
        classes = {self.types.get(path, "") for path in blocks} - _GENERIC - {""}
        places = {_place(path) for path in blocks}
        alike: set[str] = set()
        for path in self.spans:  # outer modules come before inner ones
            inside = any(prefix in blocks or prefix in alike for prefix in _prefixes(path))
            if inside or path in containers or not self._weighted(path):
                continue
            if self.types.get(path) in classes or _place(path) in places:
                alike.add(path)
        inner = {path for path in blocks if any(prefix in alike for prefix in _prefixes(path))}
        return (blocks - inner) | alike

    def _functional_regions(self, units: list[str | None], blocks: set[str]) -> None:
        """Residual regions written straight into the network's `forward`: one unit each. Routes that lead far ahead
        (to the next scale) pass them by; what is left of a flat list of modules goes in runs of a few layers."""
        alone, lists = list(units), set()
        for a, b in self.flow.regions(0, len(units), MAX_REGION):
            if _common(self.flow.paths[a:b]) or not self.flow.has_join(a, b):
                continue
            inside = {unit for unit in units[a:b] if unit}
            if not 2 <= self.flow.weighted(a, b) <= MAX_REGION or inside & blocks:
                continue
            units[a:b] = [self._name([layer for layer in self.flow.layers[a:b] if layer])] * (b - a)
            lists |= {parent(unit) for unit in inside}
        counts = Counter(parent(unit) for unit, layer in zip(alone, self.flow.layers, strict=True) if unit and layer)
        flat = {above for above in lists if counts[above] >= FLAT}
        left = [i for i, unit in enumerate(alone) if self.flow.layers[i] and unit == units[i] and unit not in blocks]
        for run in self._runs_of([i for i in left if parent(str(alone[i])) in flat]):
            stop = run[-1] + 1
            while stop < len(units) and alone[stop] == alone[run[-1]]:  # the activation function
                stop += 1
            units[run[0] : stop] = [self._name([self.flow.layers[i] for i in run])] * (stop - run[0])

    def _runs_of(self, layers: Sequence[int]) -> list[list[int]]:
        """Positions of layers, those together that follow each other at one resolution; only runs of several."""
        runs: list[list[int]] = []
        for i in layers:
            if runs and len(runs[-1]) < MAX_RUN and self._follows(runs[-1][-1], i):
                runs[-1].append(i)
            else:
                runs.append([i])
        return [run for run in runs if len(run) > 1]

    def _follows(self, first: int, second: int) -> bool:
        """True if a layer is fed by another alone, at the same resolution."""
        at = second
        while at != first:
            sources = self.flow.inputs[at]
            if len(sources) != 1 or sources[0] < first or (at != second and self.flow.layers[at]):
                return False
            at = sources[0]
        return self.flow.resolution(first) == self.flow.resolution(second)

    def _name(self, layers: Sequence[str]) -> str:
        """The module that holds just these layers, or the first and the last of a list: `layers.6-7`."""
        common = _common(layers)
        if common and sum(layer.startswith(f"{common}.") for layer in self.flow.layers) == len(layers):
            return common
        inner = [layer.removeprefix(f"{common}.").partition(".")[0] for layer in (layers[0], layers[-1])]
        if common and inner[0] != inner[1]:
            return f"{common}.{inner[0]}-{inner[1]}"
        return common or f"{layers[0]}..{layers[-1]}"


def _within(path: str, modules: set[str]) -> bool:
    """True if `path` is in one of the modules, and not that module itself."""
    return any(prefix in modules for prefix in _prefixes(parent(path)))


def _prefixes(path: str) -> Iterator[str]:
    """Every module on the way to `path`, outermost first, `path` itself last."""
    parts = path.split(".") if path else []
    for i in range(1, len(parts) + 1):
        yield ".".join(parts[:i])


def _place(path: str) -> str:
    """A module path with its numbers replaced: `layer1.0` and `layer2.1` stand in the same place."""
    return re.sub(r"\d+", "*", path)
