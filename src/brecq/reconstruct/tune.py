"""End-to-end tuning: after the blocks, all steps and biases of the network are learned together, with fixed codes.

    quantized network (integer weights fixed) → outputs;   loss = squared error against the float network's outputs

Blocks are reconstructed one by one and each leaves an error behind; here the few numbers that are not integers (a
weight step and a bias per channel, an activation step per tensor) learn to make up for it. This is the second stage
of EfficientQAT (Chen et al. 2024, "E2E-QP"), with the float network's outputs as targets instead of labels.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brecq.errors import BrecqError
from brecq.forward import BATCH
from brecq.quant.fake_quant import Mode, set_mode
from brecq.reconstruct import choice
from brecq.reconstruct.cache import Slot
from brecq.reconstruct.learnables import Learnables, make_room
from brecq.reconstruct.memory import with_room
from brecq.reconstruct.optimize import Outcome, StepHook
from brecq.reconstruct.readout import Readout
from brecq.reconstruct.run import Run
from brecq.reconstruct.sampler import Sampler, measured_on

CYCLES = (1.0, 0.2)
"""Factors of the learning rate: the steps are divided among so many cycles, each kept only if it helps. A network at 2
bits needs large changes; one that is nearly right is thrown far off by them, and gains from small ones."""

WARMUP = 0.1
"""Share of a cycle in which the learning rate rises: Adam's first steps are as long for numbers that do not matter as
for those that do."""

TRUST = 0.1
"""Share of the error that a step of random signs may add at the learning rate; where it adds more, the rate is
lowered. At 0.01 such a step adds a tenth or less to the error of ResNet-20 at 4 bits and below, a third at W4A8, and
a third or more to that of EfficientNet-lite0 at W4A8 (benchmarks/tuning_rate.py)."""

DRAWS = 4
"""Such steps that are tried."""


class Tuning:
    """Tunes a network whose blocks are finished. `mine`: all of its fake-quantizers, initialized."""

    def __init__(self, run: Run, mine: Learnables) -> None:
        self.network, self.mine, self.recipe, self.cache = run.network, mine, run.config.recipe, run.cache
        self.autocast = run.autocast
        samples, seed = len(run.inputs[0]), run.seed("tuning")
        self.batches = Sampler(samples, self.recipe.batch_size, torch.Generator().manual_seed(seed), run.held)
        self.signs = torch.Generator().manual_seed(seed)
        self.checked = measured_on(samples, run.held, seed)
        self.inputs = [Slot("tuned", i) for i in range(len(run.inputs))]
        self.targets: list[Slot] = []
        self.parts = 1  # into how many a batch is cut, for want of memory
        self._record(run.inputs)

    @torch.no_grad()
    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        """Keep the inputs and the float network's outputs in the cache."""
        set_mode(self.network.graph, Mode.FLOAT)
        samples = len(inputs[0])
        for start in range(0, samples, BATCH):
            for slot, value in zip(self.inputs, inputs, strict=True):
                self.cache.put(slot, start, value[start : start + BATCH], samples)
            outputs = self._outputs(slice(start, start + BATCH))
            self.targets = [Slot("target", i) for i in range(len(outputs))]
            for slot, value in zip(self.targets, outputs, strict=True):
                self.cache.put(slot, start, value, samples)

    def run(self, steps: int, on_step: StepHook) -> Outcome:
        """Learn for `steps` steps, leaving the network in hard mode, with the state that has the lowest loss on the
        samples that are not learned from."""
        set_mode(self.network.graph, Mode.HARD)
        before = best = self._checked_loss()
        kept = self.mine.state()
        rate = self._trusted_rate(before, kept)
        ends = [round(steps * (i + 1) / len(CYCLES)) for i in range(len(CYCLES))]
        for factor, start, end in zip(CYCLES, [0, *ends[:-1]], ends, strict=True):
            self._cycle(factor * rate, start, end, on_step)
            after = self._checked_loss()
            if after < best:
                best, kept = after, self.mine.state()
            self.mine.restore(kept)
        make_room(self.network.graph)
        for slot in (*self.inputs, *self.targets):
            self.cache.drop(slot)
        return Outcome(before, best, steps)

    @torch.no_grad()
    def _trusted_rate(self, error: float, state: dict[str, Tensor]) -> float:
        """The recipe's learning rate, or the lower one at which random steps add `TRUST` times `error`: what they add
        grows with the square of their length. Leaves what is learned in `state`."""
        rate, added = self.recipe.tune_lr, 0.0
        for _ in range(DRAWS):
            for value in self._parameters():
                value.add_(torch.randint(2, value.shape, generator=self.signs).to(value) * 2 - 1, alpha=rate)
            added += (self._checked_loss() - error) / DRAWS
            self.mine.restore(state)
        allowed = TRUST * error
        return rate if added <= allowed else rate * math.sqrt(allowed / added)

    def _cycle(self, rate: float, start: int, end: int, on_step: StepHook) -> None:
        """Learn from step `start` to step `end`."""
        optimizer = choice.adam(self._parameters(), self.cache.device)
        told = Readout()
        for step in range(start, end):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step - start, end - start)
            loss = with_room(self.cache, self._step, next(self.batches), optimizer, smaller=self._cut)
            if step % 10 == 9 or step == end - 1:
                told.put(loss, partial(_tell, on_step, step + 1))
        told.close()

    def _parameters(self) -> list[nn.Parameter]:
        """Begin to learn; those to optimize."""
        return [value for learner in self.mine.learn(choice.for_tuning()) for value in learner.parameters()]

    def _step(self, index: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        pieces = index.chunk(self.parts)
        total = torch.zeros((), device=self.cache.device)
        for piece in pieces:
            with torch.autocast(self.cache.device.type, dtype=torch.bfloat16, enabled=self.autocast):
                outputs = self._outputs(piece)
            loss = self._loss(outputs, piece)
            if len(pieces) > 1:
                loss = loss * (len(piece) / len(index))
            loss.backward()
            total = total + loss.detach()
        optimizer.step()
        return total

    def _cut(self) -> bool:
        """Learn from batches in twice as many parts, whose gradients are added up.

        Raises:
            BrecqError: they are single samples.
        """
        if 2 * self.parts > self.recipe.batch_size:
            raise BrecqError(
                "no memory to tune the whole network on a single sample; the blocks are finished: resume the run "
                "without tuning (--recipe-set tuning=0)"
            )
        self.parts *= 2
        self.cache.say(
            f"{self.cache.device} ran out of memory: the network was tuned with batches of "
            f"{self.recipe.batch_size} in {self.parts} parts"
        )
        return True

    def _outputs(self, index: Tensor | slice) -> list[Tensor]:
        return self.network.learned(self.network.graph(*(self.cache.get(slot, index) for slot in self.inputs)))

    def _compared(self, index: Tensor) -> Tensor:
        return self._loss(self._outputs(index), index)

    def _loss(self, outputs: list[Tensor], index: Tensor) -> Tensor:
        """Squared error divided by the target's mean square, mean over the outputs."""
        targets = [self.cache.get(slot, index) for slot in self.targets]
        errors = [
            F.mse_loss(output.float(), target) / target.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
            for output, target in zip(outputs, targets, strict=True)
        ]
        return torch.stack(errors).mean()

    @torch.no_grad()
    def _checked_loss(self) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self.cache.device)
        for part in self.checked.split(BATCH):
            total += with_room(self.cache, self._compared, part).double() * len(part)
        return total.item() / len(self.checked)


def _tell(on_step: StepHook, step: int, loss: float) -> None:
    on_step(step, loss, None)


def schedule(step: int, steps: int) -> float:
    """The learning rate's factor in a cycle of `steps` steps: a linear rise, and a cosine to 0."""
    return min(1.0, (step + 1) / (WARMUP * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
