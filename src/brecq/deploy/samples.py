"""Do the samples of a batch know of each other? What a file with a fixed batch size, and who runs it, has to ask.

A network that subtracts its batch's mean, attends across the batch or reshapes it away computes something else of one
sample than of eight. So does a file of it: which number it is for is the user's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from brecq.deploy.complete import Completed, describe
from brecq.errors import ConfigError, ExportError
from brecq.graph.difference import difference_of
from brecq.graph.outputs import returned
from brecq.partition.check import TOLERANCE, node_values


@dataclass(frozen=True)
class Samples:
    """What the outputs of a program do with a batch.

    Attributes:
        mixed: where another sample first changes what is computed of one, in words; empty if each stands alone.
        bare: numbers of the outputs without samples in front: numbers, constants, batches reshaped away.
    """

    mixed: str
    bare: tuple[int, ...]


@torch.no_grad()
def probe_batches(completed: Completed) -> Samples:
    """Run the program on batches of two, and look whether a sample's values change with the other.

    Of batches of one size all arithmetic on a sample is the same, down to the last bit.
    """
    graph = completed.graph
    pair = _different(completed.example_inputs)
    batches = [pair, *([value[[row, row]] for value in pair] for row in (0, 1))]
    outputs = _output_nodes(graph)
    bare = tuple(number for number, (_, node) in enumerate(outputs) if not _has_samples(node, graph))
    both, *alone = (_run(graph, batch) for batch in batches)
    for number, value in enumerate(both):
        if any(_differs(value, other[number], None if number in bare else row) for row, other in enumerate(alone)):
            name = f"output {outputs[number][0]}".rstrip()
            return Samples(_first_mixed(graph, batches) or f"{name}, which has no samples in front", bare)
    return Samples("", bare)


def fixed(
    completed: Completed, batch: int | None, runtime: str, *, only_one: bool = False
) -> tuple[int, tuple[str, ...]]:
    """The batch size of a file that has one, and what to say of it.

    Args:
        batch: as asked for; `None`: 1, where that computes what the network does of a sample in any batch.
        only_one: files of this kind are for one sample.

    Raises:
        ConfigError: `batch` is below 1. ExportError: none is given, and the samples of a batch are mixed.
    """
    if batch is not None and batch < 1:
        raise ConfigError(f"batch is {batch}; choose 1 or more")
    mixed = probe_batches(completed).mixed
    if not mixed:
        return batch or 1, ()
    if batch is None:
        many = "" if only_one else "say for how many with --option batch=N, or "
        raise ExportError(
            f"this network mixes the samples of a batch (first in {mixed}), and {runtime} takes a fixed number of "
            f"them: a file for one sample computes something else than the network does of more; {many}export to ONNX "
            "or OpenVINO, which take any number"
        )
    return batch, (
        f"the network mixes the samples of a batch (first in {mixed}): the file computes what the network does of "
        f"batches of exactly {batch}",
    )


def together(runner: Any, completed: Completed) -> int | None:
    """How many samples a file has to be given at a time, as outputs of several runs are not those of one; `None` where
    any number will do."""
    batch: int | None = getattr(runner, "batch", None)
    if batch is None:
        return None
    found = probe_batches(completed)
    return batch if found.mixed or found.bare else None


def _different(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Batches of two in which the samples differ; where the examples are one sample twice, it is turned around."""
    pair = [torch.stack([value[0], value[1 % len(value)]]) for value in inputs]
    if any(not torch.equal(value[0], value[1]) for value in pair):
        return pair
    turned = [torch.stack([value[0], value[1].flatten().flip(0).reshape(value[1].shape)]) for value in pair]
    if any(not torch.equal(value[0], value[1]) for value in turned):
        return turned
    return [torch.stack([each[0], each[1] + 1]) if each.is_floating_point() else each for each in pair]


def _run(graph: GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    found = Interpreter(graph).run(*inputs, enable_io_processing=False)
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def _output_nodes(graph: GraphModule) -> list[tuple[str, Node]]:
    """As many as `_run` returns, one for each, with its name."""
    return [(name, node) for name, node in returned(graph)
            if isinstance(node, Node) and isinstance(node.meta.get("val"), Tensor)]  # fmt: skip


def _has_samples(node: Node, graph: GraphModule) -> bool:
    """True if dimension 0 of a node is the batch: of that size, whatever it is."""
    batch = {size for each in graph.graph.find_nodes(op="placeholder") if (size := _first_extent(each)) is not None}
    return _first_extent(node) in batch


def _first_extent(node: Node) -> Any:
    """Dimension 0 as an expression of the batch size; `None` if it is a number, or there is none."""
    value = node.meta.get("val")
    size: Any = value.shape[0] if isinstance(value, Tensor) and value.dim() else None
    return size.node.expr if isinstance(size, SymInt) else None


def _differs(value: Tensor, other: Tensor, row: int | None) -> bool:
    """Whether a sample, or all of what has none in front, is not the same in both."""
    pair = (value, other) if row is None else (value[row], other[row])
    return difference_of(*pair) > TOLERANCE


def _first_mixed(graph: GraphModule, batches: Sequence[Sequence[Tensor]]) -> str:
    """`the output of sub in head`: the first operator whose sample changes with the other one; empty without one."""
    both, *alone = (node_values(graph, batch) for batch in batches)
    for node, value in both.items():
        if _has_samples(node, graph) and any(_differs(value, other[node], row) for row, other in enumerate(alone)):
            return describe(node)
    return ""
