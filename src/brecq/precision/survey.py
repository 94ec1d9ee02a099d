"""The survey of a network's sensitivities: block after block, each knob at each of its bits."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from brecq.checkpoint.resume import BlockState
from brecq.checkpoint.walk import finished, walk
from brecq.precision.layers import Anatomy
from brecq.precision.meter import BlockMeter
from brecq.precision.options import SurveyConfig
from brecq.precision.table import Term
from brecq.quant.fake_quant import Mode
from brecq.reconstruct import fisher
from brecq.reconstruct.passes import measure_fisher
from brecq.reconstruct.run import Run
from brecq.reconstruct.streams import Streams
from brecq.report import BlockReport


class Survey:
    """Measures all blocks; see `brecq.checkpoint.walk.Units`: with all processes on every block, as it learns there.

    Attributes:
        terms, codes, weight_bytes, forwards: what a `SensitivityTable` holds.
    """

    independent = False

    def __init__(self, run: Run, anatomy: Anatomy, config: SurveyConfig) -> None:
        self.run, self.anatomy, self.config = run, anatomy, config
        self.blocks = run.network.blocks
        self.names = [block.name for block in self.blocks]
        self.learned = config.quality == "reconstructed"
        self.steps = run.config.recipe.steps if self.learned else 0
        self.streams: Streams | None = None
        self.seconds = 0.0
        self.terms: list[Term] = []
        self.codes: dict[str, Tensor] = {}
        self.weight_bytes: dict[str, dict[int, int]] = {}
        self.forwards = 0

    def measure(self) -> None:
        """Measure every block that is not finished."""
        if not finished(self, 0, self.run.state):
            self._sketch()
        self.run.progress.start(self.names, self.steps)
        walk(self, 0, self.run.state, self.run.progress)
        self.forwards += 0 if self.streams is None else self.streams.forwards

    def _sketch(self) -> None:
        run, draws = self.run, self.config.draws
        run.progress.stage("measuring the Fisher information of every block")
        for draw in range(draws):
            seed, how = run.seed("sensitivity", "draw", draw), run.config
            fisher.sketch(run.network, run.inputs, run.cache, run.share, seed, draw, how.class_axis, how.outputs)
        self.forwards += draws * len(self.blocks)
        if self.learned and run.config.recipe.loss == "fisher":
            measure_fisher(run)
            self.forwards += len(self.blocks)
        self.streams = Streams(run.network, run.inputs, run.cache, Mode.FLOAT, "float", share=run.share)

    def enter(self, index: int) -> None:
        if self.streams is not None:
            self.streams.advance("float", self.blocks[index])

    def work(self, index: int) -> BlockState:
        assert self.streams is not None, "every block is finished"
        block, began = self.blocks[index], time.perf_counter()
        seen = set(self.weight_bytes)
        meter = BlockMeter(block, self.anatomy, self.streams, self.run.config, self.config.draws, seen)
        if self.learned:
            meter.learn(self.run.seed("sensitivity", index), self.run.progress.step)
        terms = [{"block": block.name, "bits": bits, "losses": meter.losses(bits)} for bits in self._settings(meter)]
        found = BlockState(block.name, meter.codes(), {"terms": terms, "weight_bytes": meter.weight_bytes()})
        meter.close()
        self.forwards += meter.forwards
        self.seconds = time.perf_counter() - began
        return found

    def take(self, index: int, saved: BlockState, resumed: bool) -> BlockReport:
        if self.streams is not None:
            self.streams.release(index)
        terms = saved.report["terms"]
        self.terms += [Term(**term) for term in terms]
        self.codes.update(saved.state)
        for knob, by_bits in saved.report["weight_bytes"].items():
            self.weight_bytes[knob] = {int(bits): size for bits, size in by_bits.items()}
        seconds = 0.0 if resumed else self.seconds
        layers = self.blocks[index].layers
        return BlockReport(saved.name, layers, self.steps, *_span(terms), seconds, "sensitivity", resumed)

    def _settings(self, meter: BlockMeter) -> list[dict[str, int]]:
        """Knobs to quantize together: each alone at each of its bits, then the pairs."""
        settings = [{knob.name: bits} for knob in meter.knobs for bits in knob.bits]
        if self.config.cross == "none":
            return settings
        for first, second in itertools.combinations(meter.knobs, 2):
            choices = [knob.bits if self.config.cross == "all" else knob.bits[:1] for knob in (first, second)]
            settings += [{first.name: a, second.name: b} for a, b in itertools.product(*choices)]
        return settings


def _span(terms: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """The largest and the smallest relative error of a single knob."""
    errors = [term["losses"]["relative"] for term in terms if len(term["bits"]) == 1]
    return max(errors, default=0.0), min(errors, default=0.0)
