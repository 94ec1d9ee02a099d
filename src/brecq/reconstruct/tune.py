"""End-to-end tuning: after the blocks, all steps and biases of the network are learned together, and codes if wanted.

    quantized network → outputs, features;   loss = squared errors against the float network's, in units of the first

Blocks are reconstructed one by one and each leaves an error behind; here everything learns to make up for it. Steps
and biases alone are the second stage of EfficientQAT (Chen et al. 2024, "E2E-QP"), with the float network's outputs as
targets instead of labels; codes can move by the straight-through gradient. Features, what the last block receives, are
many more numbers than the outputs and can be compared as well (GLF-Q 2026).
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brecq import ranks
from brecq.errors import BrecqError
from brecq.forward import BATCH, even_slices
from brecq.partition.blocks import Network, Values
from brecq.quant.fake_quant import Mode, set_mode
from brecq.quant.learners import Learner
from brecq.ranks import Part
from brecq.reconstruct import choice
from brecq.reconstruct.cache import Slot
from brecq.reconstruct.learnables import Learnables, make_room
from brecq.reconstruct.memory import parts_of, with_room
from brecq.reconstruct.optimize import Outcome, StepHook
from brecq.reconstruct.readout import Readout
from brecq.reconstruct.run import Run
from brecq.reconstruct.sampler import Sampler, measured_on, rows_of
from brecq.reconstruct.sizes import at_once, batch_size


class Cycle(NamedTuple):
    """A part of the tuning, kept only if it helps."""

    share: float
    """Of the steps."""
    factor: float
    """Of the learning rate of steps and biases."""
    codes: bool
    """Whether codes move too, where they have a rate."""

    def rates(self, highest: Mapping[str, float]) -> dict[str, float]:
        """Of what is learned here, from the highest of all cycles."""
        factors = {"steps": self.factor, "codes": float(self.codes)}
        return {kind: factors[kind] * rate for kind, rate in highest.items() if factors[kind]}


CYCLES = (Cycle(1 / 3, 1.0, False), Cycle(2 / 3, 0.2, True))
"""A network whose steps are far off needs large changes of them; one that is nearly right is thrown far off by these,
and gains from small ones. Codes need long ways: each starts in the middle of its cell."""

WARMUP = 0.1
"""Share of a cycle in which the learning rate rises: Adam's first steps are as long for numbers that do not matter as
for those that do."""

TRUST = 0.1
"""Share of the error that a step of random signs may add at the learning rate; where it adds more, the rate is
lowered. At 0.01 such a step adds a tenth or less to the error of ResNet-20 at 4 bits and below, a third at W4A8, and
a third or more to that of EfficientNet-lite0 at W4A8 (benchmarks/tuning_rate.py)."""

TRUST_CODES = 0.03
"""The same of a step of all codes by the learning rate; it is estimated from `FLIPPED` of the codes moved by one."""

FLIPPED = 0.01

DRAWS = 4
"""Such steps that are tried."""


Errors = dict[str, float]
"""Relative squared errors by the name of the tensor."""

_Number = TypeVar("_Number", float, Tensor)


class Tuning:
    """Tunes a network whose blocks are finished. `mine`: all of its fake-quantizers, initialized."""

    def __init__(self, run: Run, mine: Learnables) -> None:
        self.network, self.mine, self.recipe, self.cache = run.network, mine, run.config.recipe, run.cache
        self.autocast = run.autocast
        self.ends = run.network.ends
        self.features = _features(run.network) if self.recipe.tune_features else ()
        self.share, samples, seed = run.share, run.share.samples, run.seed("tuning")
        self.checked = measured_on(samples, run.held, seed)
        self.inputs = [Slot("tuned", i) for i in range(len(run.inputs))]
        self.batch_size = batch_size(self.recipe, run.network.graph, run.cache.device)
        self.batches = Sampler(samples, self.batch_size, torch.Generator().manual_seed(seed), run.held)
        self.draws = torch.Generator().manual_seed(seed)
        self.units: Errors = {}
        self.learners: list[Learner] = []
        self.parts = 1  # into how many a batch is cut, for want of memory
        self.at_once = at_once(self.network.graph, self.cache.device)
        self._record(run.inputs)
        if run.received is not None:
            self._keep(run.received)

    @torch.no_grad()
    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        """Keep the inputs and what the float network makes of them in the cache."""
        set_mode(self.network.graph, Mode.FLOAT)
        self._keep(inputs)
        for rows in even_slices(len(inputs[0]), self.at_once):
            for name, value in self._outputs(rows).items():
                self.cache.put(Slot("target", name), rows.start, value, len(inputs[0]))

    def _keep(self, inputs: tuple[Tensor, ...]) -> None:
        """What the network receives from now on."""
        for slot, value in zip(self.inputs, inputs, strict=True):
            self.cache.keep(slot, value)

    def run(self, steps: int, on_step: StepHook) -> Outcome:
        """Learn for `steps` steps, leaving the network in hard mode, with the state that has the lowest loss on the
        samples that are not learned from."""
        set_mode(self.network.graph, Mode.HARD)
        first = best = self._checked()
        self.units = {name: value or 1.0 for name, value in first.items()}
        kept = self.mine.state()
        rates = self._trusted(first, kept)
        cycles = [cycle for cycle in CYCLES if cycle.rates(rates)]
        unit, start = steps / sum(cycle.share for cycle in cycles), 0.0
        for cycle in cycles:
            end = start + cycle.share
            self._cycle(cycle.rates(rates), round(unit * start), round(unit * end), on_step)
            start = end
            after = self._checked()
            if self._loss(after) < self._loss(best):
                best, kept = after, self.mine.state()
            self.mine.restore(kept)
        make_room(self.network.graph)
        for slot in (*self.inputs, *(Slot("target", name) for name in (*self.ends, *self.features))):
            self.cache.drop(slot)
        return Outcome(self._of_outputs(first), self._of_outputs(best), steps)

    def _trusted(self, first: Errors, state: dict[str, Tensor]) -> dict[str, float]:
        """The recipe's learning rates of codes and of all else, or lower ones that `TRUST` and `TRUST_CODES` allow:
        what random steps add grows with the square of their length. Leaves what is learned in `state`."""
        found = {}
        for kind, rate, trust in (
            ("steps", self.recipe.tune_lr, TRUST),
            ("codes", self.recipe.tune_codes_lr, TRUST_CODES),
        ):
            if not rate:
                continue
            allowed = trust * self._loss(first)
            length, share = (rate, 1.0) if kind == "steps" else (1.0, FLIPPED)
            added = self._added(kind, length, share, first, state) * rate**2 / (length**2 * share)
            found[kind] = rate if added <= allowed else rate * math.sqrt(allowed / added)
        return found

    @torch.no_grad()
    def _added(self, kind: str, length: float, share: float, first: Errors, state: dict[str, Tensor]) -> float:
        """What random steps of this length add to the loss if so many parameters make them."""
        added = 0.0
        for _ in range(DRAWS):
            for value in self._parameters({kind: 1.0})[0]["params"]:
                drawn = torch.rand(value.shape, generator=self.draws)
                value.add_(torch.where(drawn < share, torch.where(drawn < share / 2, -length, length), 0.0).to(value))
            added += (self._loss(self._checked()) - self._loss(first)) / DRAWS
            self.mine.restore(state)
        return added

    def _cycle(self, rates: Mapping[str, float], start: int, end: int, on_step: StepHook) -> None:
        """Learn from step `start` to step `end`."""
        optimizer = choice.adam(self._parameters(rates), self.cache.device)
        if self.cache.device.type == "cpu":
            batch = min(self.batch_size, len(self.share))
            self.parts = parts_of(batch, lambda count: self._outputs(slice(0, count)))
        told = Readout()
        for step in range(start, end):
            for group in optimizer.param_groups:
                group["lr"] = group["most"] * schedule(step - start, end - start)
            part = self.share.part(next(self.batches))
            loss = with_room(self.cache, self._step, part, self._powers(part), optimizer, smaller=self._cut)
            if step % 10 == 9 or step == end - 1:
                told.put(loss, partial(_tell, on_step, step + 1))
        told.close()

    def _parameters(self, rates: Mapping[str, float]) -> list[dict[str, Any]]:
        """Begin to learn; groups for the optimizer of what has a rate, `most` the highest learning rate of each."""
        self.learners = self.mine.learn(choice.for_tuning("codes" in rates))
        found: dict[str, list[nn.Parameter]] = {"steps": [], "codes": []}
        for learner in self.learners:
            for kind, values in learner.groups().items():
                found["codes" if kind == "codes" else "steps"] += values
        return [{"params": found[kind], "most": rate} for kind, rate in rates.items()]

    def _step(self, part: Part, powers: Values, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.cache.device)
        for piece in part.pieces(self.parts):
            for learner in self.learners:
                learner.rows = rows_of(piece)
            with torch.autocast(self.cache.device.type, dtype=torch.bfloat16, enabled=self.autocast):
                found = self._outputs(piece.places)
            loss = self._loss(self._errors(found, piece.places, powers)) * piece.weight
            loss.backward()
            total = total + loss.detach()
        ranks.current().sum_gradients(optimizer, total)
        optimizer.step()
        return total

    def _cut(self) -> bool:
        """Learn from batches in twice as many parts, whose gradients are added up.

        Raises:
            BrecqError: they are single samples.
        """
        if 2 * self.parts > self.batch_size:
            raise BrecqError(
                "no memory to tune the whole network on a single sample; the blocks are finished: resume the run "
                "without tuning (--recipe-set tuning=0)"
            )
        self.parts *= 2
        self.cache.say(
            f"{self.cache.device} ran out of memory: the network was tuned with batches of "
            f"{self.batch_size} in {self.parts} parts"
        )
        return True

    def _outputs(self, index: Tensor | slice) -> Values:
        """What is compared, of some samples."""
        names = self.network.inputs
        values = {name: self.cache.get(slot, index) for name, slot in zip(names, self.inputs, strict=True)}
        return self.network.run(values, (*self.ends, *self.features))

    def _powers(self, part: Part) -> Values:
        """The mean square of each target over a batch."""
        powers = {}
        for name in (*self.ends, *self.features):
            target = self.cache.get(Slot("target", name), part.places)
            powers[name] = target.square().mean() * part.weight if len(part.places) else target.new_zeros(())
        ranks.current().sum(list(powers.values()))
        return {name: power.clamp(min=torch.finfo(torch.float32).tiny) for name, power in powers.items()}

    def _errors(self, found: Values, index: Tensor, powers: Values) -> dict[str, Tensor]:
        """The squared error of each tensor divided by its target's mean square."""
        errors = {}
        for name, value in found.items():
            target = self.cache.get(Slot("target", name), index)
            errors[name] = F.mse_loss(value.float(), target) / powers[name]
        return errors

    def _loss(self, errors: Mapping[str, _Number]) -> _Number:
        """What is minimized: errors in units of their first values."""
        total = self._mean(errors, self.ends)
        if self.features:
            total = total + self.recipe.tune_features * self._mean(errors, self.features)
        return total

    def _mean(self, errors: Mapping[str, _Number], names: Sequence[str]) -> _Number:
        parts = [errors[name] / self.units[name] for name in names]
        return reduce(operator.add, parts) / len(parts)

    def _of_outputs(self, errors: Errors) -> float:
        return sum(errors[name] for name in self.ends) / len(self.ends)

    def _compared(self, index: Tensor, powers: Values) -> dict[str, Tensor]:
        return self._errors(self._outputs(index), index, powers)

    @torch.no_grad()
    def _checked(self) -> Errors:
        """The errors on samples that are not learned from."""
        totals: dict[str, Tensor] = {}
        for index in self.checked.split(BATCH):
            part = self.share.part(index)
            powers = self._powers(part)
            for piece in part.pieces(-(-len(part.places) // self.at_once)):
                for learner in self.learners:
                    learner.rows = rows_of(piece)
                for name, error in with_room(self.cache, self._compared, piece.places, powers).items():
                    totals[name] = totals.get(name, 0) + error.double() * len(piece.places)
        errors: Counter[str] = Counter()
        for found in ranks.current().gather({name: total.item() for name, total in totals.items()}):
            errors.update(found)
        return {name: error / len(self.checked) for name, error in errors.items()}


def _features(network: Network) -> tuple[str, ...]:
    """What the last block receives, as far as it can be compared."""
    targets = {name for block in network.blocks[:-1] for name in block.targets}
    return tuple(name for name in network.blocks[-1].inputs if name in targets)


def _tell(on_step: StepHook, step: int, loss: float) -> None:
    on_step(step, loss, None)


def schedule(step: int, steps: int) -> float:
    """The learning rate's factor in a cycle of `steps` steps: a linear rise, and a cosine to 0."""
    return min(1.0, (step + 1) / (WARMUP * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
