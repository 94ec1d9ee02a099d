"""Bytes of the activations in a graph, read off it before it runs; how many samples it is run on, or learned from,
at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from brecq.config import Recipe
from brecq.forward import BATCH
from brecq.graph.shapes import captured_samples, numel_of_sample

LARGEST_RUN = 1 << 26
"""Bytes of activations that may be alive at once where a graph runs without gradients."""

BATCHES = (8, 32)
"""Samples a step, at least and at most, where the recipe does not say how many."""

BATCH_NUMBERS = BATCHES[0] * 3 * 224 * 224
"""Numbers in the inputs of such a batch. On pictures of 224 × 224 and more, 300 steps of 8 samples gave what 300 steps
of 32 give and far more than 75 of them; on 32 × 32 they lose to steps of 32 (docs/results.md, "Samples a step")."""

_FEWEST = 3
"""Samples at a time, so that even slices of any number of them have two or more: see `brecq.forward.even_slices`."""


def at_once(graph: GraphModule, device: torch.device) -> int:
    """How many samples to run a graph on at a time, without gradients: the network decides, so that results depend on
    nothing else. On the CPU as many as `LARGEST_RUN` holds; on CUDA, where launches take most of the time, `BATCH`."""
    if device.type == "cuda":
        return BATCH
    return max(_FEWEST, min(BATCH, LARGEST_RUN // max(1, alive(graph))))


def batch_size(recipe: Recipe, graph: GraphModule, device: torch.device) -> int:
    """`Recipe.batch_size`, or what it is by default, of a network as a graph. On CUDA, where a step takes as long
    whatever the batch, the most."""
    if recipe.batch_size is not None:
        return recipe.batch_size
    if device.type == "cuda":
        return BATCHES[1]
    samples = captured_samples(graph.graph)
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    numbers = sum(numel_of_sample(value, samples) for value in inputs if isinstance(value, Tensor))
    return min(max(BATCH_NUMBERS // max(1, numbers), BATCHES[0]), BATCHES[1])


def alive(graph: GraphModule) -> int:
    """Bytes of the activations that are alive at once when the graph runs, for one sample; views count as copies."""
    last: dict[Node, Node] = {}
    samples = captured_samples(graph.graph)
    for node in graph.graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    now = most = 0
    for node in graph.graph.nodes:
        now += _bytes(node, samples)
        most = max(most, now)
        now -= sum(_bytes(source, samples) for source in dict.fromkeys(node.all_input_nodes) if last[source] is node)
    return most


def activations(graph: GraphModule) -> int:
    """Bytes of all activations, for one sample."""
    samples = captured_samples(graph.graph)
    return sum(_bytes(node, samples) for node in graph.graph.nodes)


def _bytes(node: Node, samples: int) -> int:
    """Of what an operator returns for each sample; parameters and what is computed from them are counted elsewhere.

    `samples`: the graph was captured with."""
    if node.op in ("get_attr", "output"):
        return 0
    source = node.args[0] if node.op == "call_module" else node
    found = tree_leaves(source.meta.get("val")) if isinstance(source, Node) else []
    return sum(value.element_size() * numel_of_sample(value, samples) for value in found if isinstance(value, Tensor))
