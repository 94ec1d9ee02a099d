"""Passes over the network: block after block is initialized, reconstructed, and its activations handed on.

One pass learns everything (`joint`), or one the weights and a second the step sizes (`paper`). After every block its
state is saved, so that a killed run continues with the next one and ends with the same weights.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from brecq.checkpoint.resume import RunState
from brecq.config import QuantConfig
from brecq.graph.blocks import Network
from brecq.progress import Progress
from brecq.quant.fake_quant import ActivationFakeQuantize, Mode
from brecq.reconstruct import fisher
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.initialize import initialize
from brecq.reconstruct.initialize.shared import shared_quantizers, shared_ranges
from brecq.reconstruct.learnables import Learnables, learnables, make_room
from brecq.reconstruct.optimize import Reconstruction
from brecq.reconstruct.sampler import hold_out
from brecq.reconstruct.site import Site, Stage
from brecq.reconstruct.streams import Streams
from brecq.reconstruct.tune import Tuning
from brecq.report import BlockReport

END_TO_END = "end to end"
"""Name of the tuning pass in reports."""


def stages(config: QuantConfig) -> list[tuple[Stage, int]]:
    """The passes to make: what each learns and its steps a block."""
    recipe = config.recipe
    if config.method == "rtn":
        return [("rtn", 0)]
    if recipe.joint:
        return [("joint", recipe.steps)]
    return [("weights", recipe.steps), ("activations", recipe.activation_steps)]


def run(
    network: Network,
    inputs: tuple[Tensor, ...],
    labels: Tensor | None,
    config: QuantConfig,
    cache: ActivationCache,
    state: RunState | None,
    progress: Progress,
) -> tuple[list[BlockReport], int]:
    """Quantize every block of `network`; returns the reports and the number of block-forwards."""
    reports: list[BlockReport] = []
    forwards = 0
    if config.method == "reconstruct" and config.recipe.loss == "fisher":
        progress.stage("measuring the Fisher information of every block")
        measure_fisher(network, inputs, labels, config, cache)
        forwards += len(network.blocks)
    shared = shared_quantizers(network)
    if shared:
        shared_ranges(shared, network, inputs, config.recipe, cache.device)
        forwards += len(network.blocks)
    names = [block.name for block in network.blocks]
    tuned = config.method == "reconstruct" and network.returns_learned
    tuning = config.recipe.tuning_steps if tuned else 0  # class indices leave nothing to compare end to end
    later = len(names) * (sum(steps for _, steps in stages(config)) + tuning)
    held = hold_out(len(inputs[0]), config.recipe.held_out, seed_of(config.seed, "held out"))
    for number, (stage, steps) in enumerate(stages(config)):
        later -= len(names) * steps
        progress.start(names, steps, later)
        one = _Pass(network, inputs, config, cache, state, progress, number, stage, steps, shared, held)
        reports += one.run()
        forwards += one.forwards
    if tuning:
        reports.append(_tune(network, inputs, config, cache, state, progress, len(stages(config)), held))
        forwards += 0 if reports[-1].resumed else len(network.blocks)
    return reports, forwards


def measure_fisher(
    network: Network, inputs: tuple[Tensor, ...], labels: Tensor | None, config: QuantConfig, cache: ActivationCache
) -> None:
    """Put the weights of the loss `fisher` into the cache, as the recipe says."""
    generator = torch.Generator().manual_seed(seed_of(config.seed, "fisher"))
    given = labels if config.recipe.fisher_labels == "given" else None
    fisher.measure(network, inputs, given, cache, generator, config.class_axis)


def _tune(
    network: Network,
    inputs: tuple[Tensor, ...],
    config: QuantConfig,
    cache: ActivationCache,
    state: RunState | None,
    progress: Progress,
    number: int,
    held: Tensor,
) -> BlockReport:
    """The pass after the last: steps and biases of all blocks together."""
    mine = learnables(network.graph)
    steps = config.recipe.tuning_steps
    progress.start([END_TO_END], steps)
    progress.block(0, END_TO_END)
    name = f"{END_TO_END}, {steps} steps at {config.recipe.tune_lr:g}"  # a resumed run may tune otherwise
    if state is not None and state.finished(number) and state.load_block(number, 0).name == name:
        report = _restore(state, number, 0, mine, cache)
    else:
        began = time.perf_counter()
        seed = seed_of(config.seed, "tuning")
        tuning = Tuning(network, mine, inputs, config.recipe, cache, seed, config.autocast == "bf16", held)
        outcome = tuning.run(steps, progress.step)
        seconds = time.perf_counter() - began
        report = BlockReport(END_TO_END, (), steps, outcome.before, outcome.after, seconds, "tuning")
        if state is not None:
            state.save_block(number, 0, name, mine.state(), asdict(report))
    progress.block_done(report)
    return report


def _restore(state: RunState, number: int, index: int, mine: Learnables, cache: ActivationCache) -> BlockReport:
    """Take over what an earlier run learned."""
    saved = state.load_block(number, index)
    mine.restore({name: value.to(cache.device) for name, value in saved.state.items()})
    return BlockReport(**{**saved.report, "layers": tuple(saved.report["layers"]), "resumed": True})


def seed_of(seed: int, *parts: object) -> int:
    """A seed for one purpose, the same whatever ran before."""
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


class _Pass:
    def __init__(
        self,
        network: Network,
        inputs: Sequence[Tensor],
        config: QuantConfig,
        cache: ActivationCache,
        state: RunState | None,
        progress: Progress,
        number: int,
        stage: Stage,
        steps: int,
        frozen: set[ActivationFakeQuantize],
        held: Tensor,
    ) -> None:
        self.frozen, self.held = frozen, held
        self.network, self.inputs, self.config, self.cache = network, inputs, config, cache
        self.state, self.progress = state, progress
        self.number, self.stage, self.steps = number, stage, steps
        self.forwards = 0

    def run(self) -> list[BlockReport]:
        finished = self.state.finished(self.number) if self.state is not None else []
        blocks = self.network.blocks
        activations = Mode.FLOAT if self.stage == "weights" else Mode.HARD
        # A pass that is finished needs no activations: only its results.
        streams = None
        if len(finished) < len(blocks):
            streams = Streams(self.network, self.inputs, self.cache, activations)
        reports = []
        done: set[nn.Module] = set(self.frozen)
        for index, block in enumerate(blocks):
            self.progress.block(index, block.name)
            mine = learnables(block.module, done)
            done.update(mine.named().values())
            if streams is not None:
                streams.advance("float", block)
            if index in finished:
                assert self.state is not None
                report = _restore(self.state, self.number, index, mine, self.cache)
            else:
                assert streams is not None
                report = self._reconstruct(index, mine, streams)
            make_room(block.module)  # steps shrink, and biases grow, while they are learned
            if streams is not None:
                streams.advance("quantized", block)
                streams.release(index)
            reports.append(report)
            self.progress.block_done(report)
        if streams is not None:
            self.forwards = streams.forwards
        return reports

    def _reconstruct(self, index: int, mine: Learnables, streams: Streams) -> BlockReport:
        block, config = self.network.blocks[index], self.config
        began = time.perf_counter()
        site = Site(block, mine, streams, config.recipe)
        initialize(site, self.stage)
        seed = seed_of(config.seed, self.number, index)
        learner = Reconstruction(site, self.stage, seed, autocast=config.autocast == "bf16", held=self.held)
        if self.stage == "rtn":
            error = learner.hard_error().relative
            before, after, steps = error, error, 0
        else:
            outcome = learner.run(self.steps, self.progress.step)
            before, after, steps = outcome.before, outcome.after, outcome.steps
        report = BlockReport(block.name, block.layers, steps, before, after, time.perf_counter() - began, self.stage)
        if self.state is not None and self.stage != "rtn":
            self.state.save_block(self.number, index, block.name, mine.state(), asdict(report))
        return report
