"""A network captured once, quantized again and again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from brecq.checkpoint.resume import RunState
from brecq.config import QuantConfig, Recipe
from brecq.partition.blocks import Network, extract
from brecq.partition.cut import partition
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.progress import Progress
from brecq.quant.fake_quant import ActivationFakeQuantize, BiasFakeQuantize, Mode, WeightFakeQuantize, set_mode
from brecq.reconstruct import passes
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.run import Run as BlockRun
from brecq.report import BlockReport

CPU = torch.device("cpu")


@dataclass
class Run:
    """A finished run: the prepared graph in hard mode and what `passes.run` said."""

    graph: GraphModule
    network: Network
    reports: list[BlockReport]
    forwards: int
    cache: ActivationCache

    def learned(self) -> dict[str, Tensor]:
        """Codes, scales and zero points of every quantizer, and learned biases."""
        found = {}
        for name, module in self.graph.named_modules():
            if isinstance(module, WeightFakeQuantize):
                weight = next(n.args[0] for n in self.graph.graph.nodes if n.target == name)
                value: Any = self.graph
                for part in str(weight.target).split("."):
                    value = getattr(value, part)
                found[f"{name}.codes"] = module.integers(value)
            if isinstance(module, WeightFakeQuantize | ActivationFakeQuantize):
                assert module.scale is not None
                assert module.zero_point is not None
                found[f"{name}.scale"], found[f"{name}.zero_point"] = module.scale, module.zero_point
            if isinstance(module, BiasFakeQuantize) and module.learned is not None:
                found[f"{name}.learned"] = module.learned
        return found


def same(a: Run, b: Run) -> bool:
    first, second = a.learned(), b.learned()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Lab:
    """Runs reconstructions of small networks: `lab.run(bits and recipe settings)`."""

    def __init__(self, networks: ModuleType, captures: Callable[[str], GraphModule]) -> None:
        self.networks = networks
        self.same = same
        self._captured = captures

    def inputs(self, name: str = "ResNet", samples: int = 96) -> tuple[Tensor, ...]:
        return self.networks.inputs(self.networks.build(getattr(self.networks, name)), samples)

    def config(self, *, recipe: str = "fast", weights: int = 2, activations: int = 4, **changes: Any) -> QuantConfig:
        own = {name: changes.pop(name) for name in list(changes) if name in QuantConfig.__dataclass_fields__}
        own.setdefault("first_last_outputs", False)  # the first block has something to learn, too
        quick = {
            "steps": 12,
            "batch_size": 16,
            "range_candidates": 20,
            "tuning": 0.0,
            "compensate": recipe == "instant",
        }
        settings = {**quick, **changes}
        return QuantConfig(
            weights=weights, activations=activations, recipe=Recipe.preset(recipe).replace(**settings), **own
        )

    def network(self, config: QuantConfig, name: str = "ResNet") -> tuple[GraphModule, Network]:
        graph = prepare(copy.deepcopy(self._captured(name)), BrecqQuantizer(config))
        return graph, extract(graph, partition(graph, config.granularity, config.blocks))

    def run(
        self,
        config: QuantConfig | None = None,
        name: str = "ResNet",
        *,
        samples: int = 96,
        inputs: tuple[Tensor, ...] | None = None,
        labels: Tensor | None = None,
        state: RunState | None = None,
        progress: Progress | None = None,
        folder: Path | None = None,
        **changes: Any,
    ) -> Run:
        config = config or self.config(**changes)
        graph, network = self.network(config, name)
        cache = ActivationCache(CPU, config.memory_budget, folder)
        data = self.inputs(name, samples) if inputs is None else inputs
        try:
            given = BlockRun(network, data, config, cache, labels, state, progress or Progress())
            reports, forwards = passes.run(given)
        finally:
            cache.close()
        set_mode(graph, Mode.HARD)
        return Run(graph, network, reports, forwards, cache)


@pytest.fixture(scope="session")
def lab(networks: ModuleType, captures: Callable[[str], GraphModule]) -> Lab:
    return Lab(networks, captures)
