"""How much memory a run needs at least, whatever is kept in files: what a memory budget has to hold.

    fixed part + result (codes of all weights) + the block that needs most, while it is worked on

Activations that wait between blocks are not in it: they get what the budget leaves, and files for the rest. Sizes are
read off the captured graph, so that a network that cannot fit is refused before anything is computed. They are bounds
of what is alive at a time, not measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from brecq.config import QuantConfig, Recipe
from brecq.errors import ConfigError
from brecq.forward import BATCH
from brecq.graph.fold import get_tensor
from brecq.graph.geometry import geometry_of
from brecq.partition.blocks import Network
from brecq.placement.prepare import fake_quantize_node
from brecq.quant.compensate import form
from brecq.quant.fake_quant import WeightFakeQuantize
from brecq.ranks import UNIT
from brecq.reconstruct.initialize.layer_inputs import patches_of, readers
from brecq.reconstruct.memory import LARGEST_PART
from brecq.reconstruct.sizes import activations, alive, at_once, batch_size
from brecq.units import format_bytes

FIXED = 400_000_000
"""Bytes that capturing, compiling and running any network take."""

LEARNED = 32
"""Bytes for each weight that is learned: logits, gradient, Adam's moments, soft weight, its gradient, best codes."""

SAVED = 3
"""Times that an activation is held in a gradient step: itself, what its quantizer keeps, its gradient."""


@dataclass(frozen=True)
class Need:
    """Bytes. `block`: the name of what needs most, `work`: while it is worked on; `result`: what is kept of all."""

    block: str
    work: int
    result: int

    @property
    def total(self) -> int:
        return FIXED + self.work + self.result


def need(network: Network, config: QuantConfig, device: torch.device) -> Need:
    """What a run over the network needs without its caches."""
    recipe, learns = config.recipe, config.method == "reconstruct"
    batch = batch_size(recipe, network.graph, device)
    work = {block.name: _block(block.module, recipe, batch, learns, device) for block in network.blocks}
    whole = [activations(block.module) for block in network.blocks]
    if learns and recipe.loss == "fisher":
        work["the Fisher information of all blocks"] = SAVED * BATCH * sum(whole)
    if learns and recipe.tuning_steps and network.returns_learned:
        work["the tuning of all blocks"] = _step(batch, sum(whole)) + 4 * _weights(network.graph)
    name = max(work, key=lambda key: work[key])
    return Need(name, work[name], 2 * _weights(network.graph))


def left_for_caches(network: Network, config: QuantConfig, device: torch.device, other: int = 0) -> int | None:
    """What the memory budget leaves for activations that wait; `None` without a budget.

    Args:
        other: bytes that are taken already, such as a copy of the model.

    Raises:
        ConfigError: the run needs more than the budget.
    """
    if config.memory_budget is None:
        return None
    least = need(network, config, device)
    left = config.memory_budget - least.total - other
    if left < 0:
        budget, total, work, result, fixed = (
            format_bytes(size) for size in (config.memory_budget, config.memory_budget - left, least.work,
                                                least.result, FIXED + other)
        )  # fmt: skip
        raise ConfigError(
            f"memory_budget is {budget}, but the run needs {total} besides the model and the data: {work} for "
            f"{least.block}, {result} for the result, {fixed} in any case; raise it, lower batch_size, or take finer "
            "blocks (granularity layer)"
        )
    return left


def _block(graph: GraphModule, recipe: Recipe, batch: int, learns: bool, device: torch.device) -> int:
    """The most that one of the things takes that are done to a block."""
    samples = at_once(graph, device)
    steps = [samples * alive(graph)]
    if learns and recipe.compensate:
        steps.append(2 * min(samples, UNIT) * alive(graph) + _closed_form(graph, recipe.range_samples))
    if learns and (recipe.steps or recipe.activation_steps):
        steps.append(_step(batch, activations(graph)) + LEARNED * _weights(graph))
    return max(steps) + 4 * _weights(graph)


def _step(batch: int, sample: int) -> int:
    """Activations of a gradient step, `sample` bytes for each sample: large batches are learned in parts."""
    return min(SAVED * batch * sample, max(2 * LARGEST_PART, 2 * SAVED * sample))


def _weights(graph: GraphModule) -> int:
    """How many numbers the weights of a graph hold that are quantized."""
    return sum(weight.numel() for weight in _quantized(graph).values())


def _quantized(graph: GraphModule) -> dict[WeightFakeQuantize, Tensor]:
    found = {}
    for node in graph.graph.nodes:
        module, source = fake_quantize_node(graph, node), node.args[0] if node.args else None
        if isinstance(module, WeightFakeQuantize) and isinstance(source, Node) and source.op == "get_attr":
            found[module] = get_tensor(graph, str(source.target))
    return found


def _closed_form(graph: GraphModule, samples: int) -> int:
    """Of the layer that needs most, from the inputs of so many samples."""
    weights, most = _quantized(graph), 0
    for module, uses in readers(graph).items():
        if module in weights:
            groups, rows, size = geometry_of(uses[0]).rows(weights[module]).shape
            count = samples * patches_of(graph, uses)
            most = max(most, form.bytes_of(groups, rows, size, count, apart=module.per_channel))
    return most
