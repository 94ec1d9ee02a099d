"""Passes over the network: block after block is initialized, reconstructed, and its activations handed on.

One pass learns everything (`joint`), or one the weights and a second the step sizes (`paper`). After every block its
state is saved, so that a killed run continues with the next one and ends with the same weights.
"""

from __future__ import annotations

import time
from dataclasses import asdict

from torch import nn

from brecq.checkpoint.resume import BlockState, RunState
from brecq.checkpoint.walk import finished, walk
from brecq.config import QuantConfig
from brecq.errors import DataError
from brecq.partition.blocks import Block
from brecq.quant.fake_quant import Mode
from brecq.reconstruct import fisher
from brecq.reconstruct.initialize import initialize
from brecq.reconstruct.initialize.compensated import compensated_weights
from brecq.reconstruct.initialize.shared import shared_quantizers, shared_ranges
from brecq.reconstruct.learnables import Learnables, learnables, make_room
from brecq.reconstruct.memory import return_freed
from brecq.reconstruct.optimize import Outcome, Reconstruction
from brecq.reconstruct.run import Run
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


def run(run: Run) -> tuple[list[BlockReport], int]:
    """Quantize every block of the network; returns the reports and the number of block-forwards."""
    reports: list[BlockReport] = []
    blocks, recipe = len(run.network.blocks), run.config.recipe
    forwards = blocks * (_measure_fisher(run) + _initialize_shared(run))
    tuned = run.config.method == "reconstruct" and run.network.returns_learned
    tuning = recipe.tuning_steps if tuned else 0  # class indices leave nothing to compare end to end
    later = blocks * (sum(steps for _, steps in stages(run.config)) + tuning)
    for number, (stage, steps) in enumerate(stages(run.config)):
        one = _Pass(run, number, stage, steps)
        later -= blocks * steps
        run.progress.start(one.names, steps, later)
        reports += walk(one, number, one.state, run.progress)
        forwards += 0 if one.streams is None else one.streams.forwards
    if tuning:
        run.progress.start([END_TO_END], tuning)
        reports += walk(_EndToEnd(run, tuning), len(stages(run.config)), _tuned_so(run), run.progress)
        forwards += 0 if reports[-1].resumed else blocks
    return reports, forwards


def measure_fisher(run: Run) -> None:
    """Put the weights of the loss `fisher` into the cache, as the recipe says."""
    given = run.labels if run.config.recipe.fisher_labels == "given" else None
    seed, how = run.seed("fisher"), run.config
    fisher.measure(run.network, run.inputs, given, run.cache, run.share, seed, how.class_axis, how.outputs)


def _measure_fisher(run: Run) -> bool:
    """Whether there was anything to measure, which takes a pass over the network."""
    wanted = run.config.method == "reconstruct" and run.config.recipe.loss == "fisher"
    if wanted:
        run.progress.stage("measuring the Fisher information of every block")
        measure_fisher(run)
    return wanted


def _initialize_shared(run: Run) -> bool:
    """Whether there was anything to initialize, which takes a pass over the network."""
    shared = shared_quantizers(run.network)
    if shared:
        shared_ranges(shared, run.network, run.inputs, run.share, run.config.recipe, run.cache.device)
    return bool(shared)


def _tuned_so(run: Run) -> RunState | None:
    """Where a tuning is saved: one that was made otherwise, as the run that is resumed may have, is not taken over."""
    chosen = {k: v for k, v in asdict(run.config.recipe).items() if k.startswith("tun")}
    return None if run.state is None else run.state.section(tuning=chosen)


def _restore(saved: BlockState, mine: Learnables, run: Run, resumed: bool) -> BlockReport:
    """Take over what this run, or an earlier one, learned."""
    mine.restore({name: value.to(run.cache.device) for name, value in saved.state.items()})
    return BlockReport.from_dict(saved.report, resumed=resumed)


class _EndToEnd:
    """The pass after the last, whose only unit is the whole network: steps and biases of all blocks together."""

    independent = False
    names = (END_TO_END,)

    def __init__(self, run: Run, steps: int) -> None:
        self.run, self.steps = run, steps
        self.mine = learnables(run.network.graph)

    def enter(self, index: int) -> None:
        return_freed(self.run.cache.device)

    def work(self, index: int) -> BlockState:
        began = time.perf_counter()
        outcome = Tuning(self.run, self.mine).run(self.steps, self.run.progress.step)
        seconds = time.perf_counter() - began
        report = BlockReport(END_TO_END, (), self.steps, outcome.before, outcome.after, seconds, "tuning")
        return BlockState(END_TO_END, self.mine.state(), asdict(report))

    def take(self, index: int, saved: BlockState, resumed: bool) -> BlockReport:
        return _restore(saved, self.mine, self.run, resumed)


class _Pass:
    """One pass over the blocks; see `brecq.checkpoint.walk.Units`."""

    independent = False

    def __init__(self, run: Run, number: int, stage: Stage, steps: int) -> None:
        self.run, self.number, self.stage, self.steps = run, number, stage, steps
        self.blocks = run.network.blocks
        self.names = [block.name for block in self.blocks]
        self.state = None if stage == "rtn" else run.state  # nothing is learned that could be saved
        self.done: set[nn.Module] = set(shared_quantizers(run.network))
        self.mine = Learnables()
        self.streams: Streams | None = None
        if not finished(self, number, self.state):  # otherwise no activations are needed: only results
            activations = Mode.FLOAT if stage == "weights" else Mode.HARD
            self.streams = Streams(run.network, run.inputs, run.cache, activations, share=run.share)
            if run.received is not None:
                self.streams.receive(run.received)

    def enter(self, index: int) -> None:
        return_freed(self.run.cache.device)
        self.mine = learnables(self.blocks[index].module, self.done)
        self.done.update(self.mine.named().values())
        if self.streams is not None:
            self.streams.advance("float", self.blocks[index])

    def work(self, index: int) -> BlockState:
        assert self.streams is not None, "every block is finished"
        block = self.blocks[index]
        try:
            return self._work(block, self.run.seed(self.number, index))
        except DataError as error:
            raise DataError(f"block {block.name!r} cannot be quantized: {error}") from error

    def _work(self, block: Block, seed: int) -> BlockState:
        assert self.streams is not None
        run = self.run
        began = time.perf_counter()
        site = Site(block, self.mine, self.streams, run.config.recipe, run.held)
        initialize(site, self.stage)
        learner = Reconstruction(site, self.stage, seed, autocast=run.autocast, held=run.held)
        nearest = learner.hard_error()
        if self.stage == "rtn":
            outcome = Outcome(nearest.relative, nearest.relative, 0)
        else:
            learned = site.recipe.first_layer or not self._first(block)
            if learned and site.recipe.compensate and self.stage != "activations":
                _compensate(site, learner, nearest.loss)
            outcome = learner.run(self.steps if learned else 0, run.progress.step)
        seconds = time.perf_counter() - began
        report = BlockReport(
            block.name, block.layers, outcome.steps, nearest.relative, outcome.after, seconds, self.stage
        )
        return BlockState(block.name, self.mine.state(), asdict(report))

    def _first(self, block: Block) -> bool:
        """Whether a block is one layer that reads the network's inputs."""
        reads = set(block.inputs) <= set(self.run.network.inputs)
        return reads and len(block.layers) == 1 and self.run.received is None

    def take(self, index: int, saved: BlockState, resumed: bool) -> BlockReport:
        report = _restore(saved, self.mine, self.run, resumed)
        make_room(self.blocks[index].module)  # steps shrink, and biases grow, while they are learned
        if self.streams is not None:
            self.streams.release(index, ("float",))  # learned from for the last time: make room for what comes
            return_freed(self.run.cache.device)
            self.streams.advance("quantized", self.blocks[index])
            self.streams.release(index)
        return report


def _compensate(site: Site, learner: Reconstruction, nearest: float) -> None:
    """The closed-form start, unless its loss is larger than `nearest`, that of rounding to nearest."""
    state = site.mine.state()
    starts = [(module, module.start) for module, _ in site.mine.weights.values()]
    compensated_weights(site)
    if site.recipe.keep_best and learner.hard_error().loss > nearest:
        site.mine.restore(state)
        for module, start in starts:
            module.start = start
