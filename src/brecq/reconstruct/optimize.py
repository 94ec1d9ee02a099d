"""Reconstruction of one block: learn its rounding and step sizes so that its output equals the float block's.

    quantized input → block (soft rounding) → output;   loss = weighted squared error against the float target + λ·R

R drives the soft rounding to 0 or 1 (AdaRound). The state with the lowest loss under hard rounding is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brecq import ranks
from brecq.config import Recipe
from brecq.errors import DataError
from brecq.quant import adaround, kernels
from brecq.quant.learners import Learner, PenalizedLearner
from brecq.ranks import Part
from brecq.reconstruct import choice
from brecq.reconstruct.cache import Slot
from brecq.reconstruct.learnables import Learnables
from brecq.reconstruct.memory import parts_of, with_room
from brecq.reconstruct.readout import Readout
from brecq.reconstruct.sampler import NONE, Sampler, measured_on, rows_of
from brecq.reconstruct.site import Site, Stage
from brecq.reconstruct.sizes import batch_size
from brecq.reconstruct.streams import Stream

LEAST = 1e-90
"""Least power of a target: that of one number that float32 just holds."""

HARD_CHECKS = 3
"""How often per block it is measured while learning."""

StepHook = Callable[[int, float, "float | None"], None]


@dataclass(frozen=True)
class Outcome:
    """Relative squared error of the block's output, rounded to nearest and at the end; gradient steps made."""

    before: float
    after: float
    steps: int


class Reconstruction:
    """Learns one block. `stage` says what: `weights`, `activations`, or both (`joint`). `held`: samples left out."""

    def __init__(self, site: Site, stage: Stage, seed: int, *, autocast: bool = False, held: Tensor = NONE) -> None:
        self.block, self.streams, self.recipe = site.block, site.streams, site.recipe
        self.mine = _learned_in(stage, site.mine, site.recipe)
        self.device = site.streams.cache.device
        self.autocast = autocast
        self.seed = seed
        self.drop = self.recipe.qdrop if site.streams.quantizes_activations else 0.0
        self.fisher = self.recipe.loss == "fisher" and stage != "rtn"
        self.norm = self.recipe.activation_norm if stage == "activations" else 2.0
        self.learned_on: Stream = self.recipe.activation_inputs if stage == "activations" else "quantized"
        self.held = held
        self.batch_size = batch_size(self.recipe, site.streams.network.graph, self.device)
        self.parts = 1  # into how many a batch is cut, for want of memory
        self.checked = measured_on(site.streams.samples, held, seed)
        self.weights = self._weights()

    def run(self, steps: int, on_step: StepHook) -> Outcome:
        """Learn for `steps` steps, leaving the block in hard mode with the best state found.

        Raises:
            DataError: the loss before it is not finite: nothing could be learned from its gradients.
        """
        before = self.hard_error()
        if not steps or not self.mine.named():
            self.mine.restore(self.mine.state())
            return Outcome(before.relative, before.relative, 0)
        if not math.isfinite(before.loss):
            raise DataError(
                "the squared error of its outputs, by which it is learned, is more than float32 holds (3.4e38): scale "
                "the weights or the inputs of the network, or learn nothing (recipe instant)"
            )
        best = (before, self.mine.state())
        learning = self._begin(steps, before.loss or 1.0)
        if self.recipe.keep_best and any(learner.warm for learner in learning.learners):
            started = self._check()
            if started.loss < best[0].loss:
                best = (started, self.mine.state())
        checks = {round(steps * (i + 1) / HARD_CHECKS) - 1 for i in range(HARD_CHECKS)}
        hard: float | None = None
        batches = Sampler(self.streams.samples, self.batch_size, torch.Generator().manual_seed(self.seed), self.held)
        told = Readout()
        for step in range(steps):
            part = self.streams.share.part(next(batches))
            learning.anneal(step)
            loss = with_room(self.streams.cache, self._step, step, part, learning, smaller=self._cut)
            if step in checks and (self.recipe.keep_best or step == steps - 1):
                error = self._check()
                hard = error.relative
                if error.loss < best[0].loss or not self.recipe.keep_best:
                    best = (error, self.mine.state())
            if step % 10 == 9 or step == steps - 1:
                told.put(loss, partial(_tell, on_step, step + 1, before.relative, hard))
        told.close()
        self.mine.restore(best[1])
        return Outcome(before.relative, best[0].relative, steps)

    def _begin(self, steps: int, scale: float) -> _Learning:
        learners = self.mine.learn(choice.for_block(self.recipe, self.drop))
        groups = choice.parameter_groups(learners, self.recipe)
        learning = _Learning(learners, choice.adam(groups, self.device), steps, scale)
        if self.device.type == "cpu" and steps:
            batch = min(self.batch_size, len(self.streams.share))
            self.parts = parts_of(batch, partial(self._first, learning))
        return learning

    def _first(self, learning: _Learning, count: int) -> Any:
        """What the block makes of the first samples while it is learned."""
        part = Part(torch.arange(count), 0, count)
        learning.reseed(self.seed, 0, part)
        return self.block.module(*self._inputs(part, 0))

    def _step(self, step: int, part: Part, learning: _Learning) -> Tensor:
        """One gradient step on a batch; returns its loss relative to that before learning."""
        recipe, together = self.recipe, ranks.current()
        learning.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        penalty = self._penalty(step, learning) / together.size
        for piece in part.pieces(self.parts):
            learning.reseed(self.seed, step, piece)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
                outputs = self.block.module(*self._inputs(piece, step))
            reconstruction = self._loss(outputs, piece.places) * piece.weight
            if recipe.normalize_loss:
                reconstruction = reconstruction / learning.scale
            total = total + reconstruction.detach()
            (reconstruction + penalty).backward()
            penalty = 0.0
        if isinstance(penalty, Tensor):  # there is no sample to learn from
            penalty.backward()
        together.sum_gradients(learning.optimizer, total)
        learning.optimizer.step()
        return total if recipe.normalize_loss else total / learning.scale

    def _penalty(self, step: int, learning: _Learning) -> Tensor | float:
        """The regularizer, weighted; 0 while there is none."""
        recipe = self.recipe
        beta = adaround.beta_schedule(step, learning.steps, recipe.warmup, *recipe.beta)
        penalized = [each for each in learning.learners if isinstance(each, PenalizedLearner) and each.penalized]
        if beta is None or not penalized:
            return 0.0
        penalty = torch.stack([learner.penalty(beta) for learner in penalized]).sum()
        if recipe.normalize_loss:
            penalty = penalty / sum(learner.penalized for learner in penalized)
        return recipe.rounding_penalty * penalty

    def _cut(self) -> bool:
        """Learn from batches in twice as many parts, whose gradients are added up; False for single samples."""
        if 2 * self.parts > self.batch_size:
            return False
        self.parts *= 2
        self.streams.cache.say(
            f"{self.device} ran out of memory: block {self.block.name!r} was learned with batches of "
            f"{self.batch_size} in {self.parts} parts"
        )
        return True

    def _inputs(self, part: Part, step: int) -> list[Tensor]:
        """The block's inputs: from the quantized prefix, a random share of elements from the float one (QDrop); or
        all from the float one."""
        inputs = self.streams.read(self.learned_on, self.block.inputs, part.places)
        if not self.drop or self.learned_on == "float":
            return inputs
        clean = self.streams.read("float", self.block.inputs, part.places)
        return [
            kernels.hash_mix(q, f, self.drop, -1 - (self.seed + step * len(inputs) + i), rows_of(part))
            if q.is_floating_point()
            else q
            for i, (q, f) in enumerate(zip(inputs, clean, strict=True))
        ]

    def _weights(self) -> dict[str, float]:
        """Of each target in the loss: errors are in units of the target's own power, so that a large output (class
        scores of one scale) does not hide a small one (boxes of another). A single target's is 1."""
        names = self.block.targets
        if len(names) < 2:
            return dict.fromkeys(names, 1.0)
        powers = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        mine = self.streams.share.mine(self.checked)
        for rows in self.streams.slices(self.block, slice(0, len(mine))):
            index = mine[rows]
            targets = self.streams.read("float", names, index)
            powers += torch.stack([
                t.double().abs().pow(self.norm).mean() * _channels(t) * len(index) for t in targets
            ])  # fmt: skip
        ranks.current().sum([powers])
        mean = powers[powers > 0].mean()
        return {name: (mean / power).item() if power > 0 else 1.0 for name, power in zip(names, powers, strict=True)}

    def _loss(self, outputs: tuple[Tensor, ...], index: Tensor | slice) -> Tensor:
        """Squared error (or |·|^p) summed over channels, mean over samples and positions, summed over the block's
        outputs, each in units of its own power."""
        names = self.block.targets
        targets = self.streams.read("float", names, index)
        total = torch.zeros((), device=self.device)
        for name, output, target in zip(names, self.block.compared(outputs), targets, strict=True):
            if self.fisher or self.norm != 2:
                error = (self._weight(name, index) * _power(output.float() - target, self.norm)).mean()
            else:
                error = F.mse_loss(output.float(), target)
            total = total + error * (_channels(target) * self.weights[name])
        return total

    def _weight(self, name: str, index: Tensor | slice) -> Tensor | float:
        """Of the elements of a target's error."""
        return self.streams.cache.get(Slot("fisher", name), index) if self.fisher else 1.0

    @torch.no_grad()
    def hard_error(self) -> _Error:
        """Loss and relative error with hard rounding on the samples that are not learned from."""
        self.streams.set_mode("quantized", self.block)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        mine = self.streams.share.mine(self.checked)
        for rows in self.streams.slices(self.block, slice(0, len(mine))):
            sums += with_room(self.streams.cache, self._sums, mine[rows])
        ranks.current().sum([sums])
        loss, error, power = sums.tolist()
        return _Error(loss / len(self.checked), error / max(power, LEAST))

    def _sums(self, index: Tensor) -> Tensor:
        """Loss times samples, squared error, and square of the target, of some samples: float64 [3]."""
        outputs = self.block.module(*self.streams.read("quantized", self.block.inputs, index))
        loss = self._loss(outputs, index).double() * len(index)
        error, power = torch.zeros_like(loss), torch.zeros_like(loss)
        targets = self.streams.read("float", self.block.targets, index)
        for name, output, target in zip(self.block.targets, self.block.compared(outputs), targets, strict=True):
            wanted = target.double()  # squares of float32 numbers may be more, or less, than float32 holds
            error += F.mse_loss(output.double(), wanted, reduction="sum") * self.weights[name]
            power += wanted.square().sum() * self.weights[name]
        return torch.stack([loss, error, power])

    def _check(self) -> _Error:
        """The error if learning stopped now; learning can go on afterwards."""
        error = self.hard_error()
        self.mine.resume()
        return error


def _channels(target: Tensor) -> int:
    return target.shape[1] if target.dim() == 4 else target.shape[-1]


def _power(error: Tensor, norm: float) -> Tensor:
    return error.square() if norm == 2 else error.abs().pow(norm)


def _tell(on_step: StepHook, step: int, scale: float, hard: float | None, loss: float) -> None:
    on_step(step, loss * scale, hard)


def _learned_in(stage: Stage, mine: Learnables, recipe: Recipe) -> Learnables:
    return Learnables(
        mine.weights if stage != "activations" else {},
        mine.activations if stage != "weights" else {},
        mine.biases if stage != "activations" and recipe.bias_lr else {},
    )


@dataclass(frozen=True)
class _Learning:
    """What `steps` gradient steps work with. `scale`: the loss before the first."""

    learners: list[Learner]
    optimizer: torch.optim.Optimizer
    steps: int
    scale: float

    def anneal(self, step: int) -> None:
        """Set the learning rates that fall."""
        for group in self.optimizer.param_groups:
            if "falling" in group:
                group["lr"] = group["falling"] * (1 + math.cos(math.pi * step / self.steps)) / 2

    def reseed(self, seed: int, step: int, part: Part) -> None:
        random = [learner for learner in self.learners if learner.random]
        for i, learner in enumerate(random):
            learner.seed = seed + step * len(random) + i
            learner.rows = rows_of(part)


@dataclass(frozen=True)
class _Error:
    loss: float
    relative: float
