"""Reconstruction of one block: learn its rounding and step sizes so that its output equals the float block's.

    quantized input → block (soft rounding) → output;   loss = weighted squared error against the float target + λ·R

R drives the soft rounding to 0 or 1 (AdaRound). The state with the lowest loss under hard rounding is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from brecq.config import Recipe
from brecq.graph.blocks import Block
from brecq.quant import adaround, kernels
from brecq.quant.fake_quant import ActivationFakeQuantize, FakeQuantize, Mode, set_mode
from brecq.reconstruct.learnables import Learnables, make_room
from brecq.reconstruct.sampler import NONE, Sampler, measured_on
from brecq.reconstruct.streams import BATCH, Streams

Stage = Literal["joint", "weights", "activations", "rtn"]

HARD_CHECKS = 3
"""How often per block it is measured while learning."""

StepHook = Callable[[int, float, "float | None"], None]


@dataclass(frozen=True)
class Outcome:
    """Relative squared error of the block's output, rounded to nearest and at the end; gradient steps made."""

    before: float
    after: float
    steps: int


def initialize(block: Block, mine: Learnables, streams: Streams, recipe: Recipe, *, activations: bool) -> None:
    """Set the ranges: weights from their values, activations from the block run in float on its quantized inputs."""
    for module, weight in mine.weights.values():
        if module.scale is None:
            module.initialize(weight, recipe.range_norm, recipe.range_candidates)
    waiting = [module for module in mine.activations.values() if not module.initialized]
    if activations and waiting:
        _observe(block, waiting, streams, recipe)
    make_room(block.module)


def _observe(block: Block, waiting: list[ActivationFakeQuantize], streams: Streams, recipe: Recipe) -> None:
    set_mode(block.module, Mode.FLOAT)
    for module in waiting:
        module.mode = Mode.OBSERVE
    with torch.no_grad():
        for start in range(0, min(recipe.range_samples, streams.samples), BATCH):
            part = slice(start, min(start + BATCH, recipe.range_samples))
            block.module(*streams.read("quantized", block.inputs, part))
    for module in waiting:
        module.initialize(recipe.range_norm, recipe.range_candidates)


class Reconstruction:
    """Learns one block. `stage` says what: `weights`, `activations`, or both (`joint`). `held`: samples left out."""

    def __init__(
        self,
        block: Block,
        mine: Learnables,
        streams: Streams,
        recipe: Recipe,
        stage: Stage,
        seed: int,
        autocast: bool,
        held: Tensor = NONE,
    ) -> None:
        self.block, self.mine, self.streams, self.recipe, self.stage = block, mine, streams, recipe, stage
        self.device = streams.cache.device
        self.autocast = autocast
        self.generator = torch.Generator().manual_seed(seed)
        self.seed = seed
        weights = mine.weights if stage != "activations" else {}
        activations = mine.activations if stage != "weights" else {}
        biases = mine.biases if stage != "activations" and recipe.bias_lr else {}
        self.weights = list(weights.values())
        self.activations = list(activations.values())
        self.biases = list(biases.values())
        self.drop = recipe.qdrop if streams.quantizes_activations else 0.0
        self.fisher = recipe.loss == "fisher"
        self.held = held
        self.checked = measured_on(streams.samples, held, seed)

    def run(self, steps: int, on_step: StepHook) -> Outcome:
        """Learn for `steps` steps, leaving the block in hard mode with the best state found."""
        before = self.hard_error()
        scale = before.loss or 1.0
        if not (self.weights or self.activations or self.biases):
            return Outcome(before.relative, before.relative, 0)
        best = (before, self._snapshot(untouched=True))
        optimizer = self._begin()
        if self.recipe.keep_best and any(module.start is not None for module, _ in self.weights):
            started = self._check()
            if started.loss < best[0].loss:
                best = (started, self._snapshot())
        checks = {round(steps * (i + 1) / HARD_CHECKS) - 1 for i in range(HARD_CHECKS)}
        hard: float | None = None
        batches = Sampler(self.streams.samples, self.recipe.batch_size, self.generator, self.held)
        for step in range(steps):
            loss = self._step(step, steps, next(batches), optimizer, scale)
            if step in checks and (self.recipe.keep_best or step == steps - 1):
                error = self._check()
                hard = error.relative
                if error.loss < best[0].loss or not self.recipe.keep_best:
                    best = (error, self._snapshot())
            if step % 10 == 9 or step == steps - 1:
                on_step(step + 1, loss.item() * before.relative, hard)
        self._finish(best[1])
        return Outcome(before.relative, best[0].relative, steps)

    def _begin(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        logits = [module.begin_learning(weight) for module, weight in self.weights]
        steps = [module.begin_learning(recipe.step_space == "log", self.drop) for module in self.activations]
        biases = [module.begin_learning(bias) for module, bias in self.biases]
        rates = ((logits, recipe.rounding_lr), (steps, recipe.step_lr), (biases, recipe.bias_lr))
        return torch.optim.Adam([{"params": parameters, "lr": rate} for parameters, rate in rates if parameters])

    def _step(self, step: int, steps: int, index: Tensor, optimizer: torch.optim.Optimizer, scale: float) -> Tensor:
        recipe = self.recipe
        for i, module in enumerate(self.activations):
            module.seed = self.seed + step * len(self.activations) + i
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            outputs = self.block.module(*self._inputs(index, step))
        reconstruction = self._loss(outputs, index)
        if recipe.normalize_loss:
            reconstruction = reconstruction / scale
        beta = adaround.beta_schedule(step, steps, recipe.warmup, *recipe.beta)
        loss = reconstruction
        if beta is not None and self.weights:
            logits = [module.v for module, _ in self.weights if module.v is not None]
            penalty = torch.stack([adaround.rounding_regularizer(v, beta) for v in logits]).sum()
            if recipe.normalize_loss:
                penalty = penalty / sum(v.numel() for v in logits)
            loss = loss + recipe.rounding_penalty * penalty
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        detached = reconstruction.detach()
        return detached if recipe.normalize_loss else detached / scale

    def _inputs(self, index: Tensor, step: int) -> list[Tensor]:
        """The block's inputs: from the quantized prefix, a random share of elements from the float one (QDrop)."""
        inputs = self.streams.read("quantized", self.block.inputs, index)
        if not self.drop:
            return inputs
        clean = self.streams.read("float", self.block.inputs, index)
        return [
            kernels.hash_mix(q, f, self.drop, -1 - (self.seed + step * len(inputs) + i))
            if q.is_floating_point()
            else q
            for i, (q, f) in enumerate(zip(inputs, clean, strict=True))
        ]

    def _loss(self, outputs: tuple[Tensor, ...], index: Tensor | slice) -> Tensor:
        """Squared error summed over channels, mean over samples and positions, summed over the block's outputs."""
        names = self.block.targets
        targets = self.streams.read("float", names, index)
        total = torch.zeros((), device=self.device)
        for name, output, target in zip(names, self.block.compared(outputs), targets, strict=True):
            channels = target.shape[1] if target.dim() == 4 else target.shape[-1]
            if self.fisher:
                weight = self.streams.cache.get(f"fisher/{name}", index)
                error = (weight * (output.float() - target).square()).mean()
            else:
                error = F.mse_loss(output.float(), target)
            total = total + error * channels
        return total

    @torch.no_grad()
    def hard_error(self) -> _Error:
        """Loss and relative error with hard rounding on the samples that are not learned from."""
        self.streams.set_mode("quantized", self.block)
        loss, error, power = 0.0, 0.0, 0.0
        for index in self.checked.split(BATCH):
            outputs = self.block.module(*self.streams.read("quantized", self.block.inputs, index))
            loss += self._loss(outputs, index).item() * len(index)
            targets = self.streams.read("float", self.block.targets, index)
            for output, target in zip(self.block.compared(outputs), targets, strict=True):
                error += F.mse_loss(output.float(), target, reduction="sum").item()
                power += target.square().sum().item()
        return _Error(loss / len(self.checked), error / max(power, 1e-30))

    def _check(self) -> _Error:
        """The error if learning stopped now; learning can go on afterwards."""
        for module, _ in self.weights:
            module.codes = module.learned_codes()
        error = self.hard_error()
        for module, _ in self.weights:
            module.codes = None
        learning: list[FakeQuantize] = [*self.activations, *(m for m, _ in self.weights), *(m for m, _ in self.biases)]
        for quantizer in learning:
            quantizer.mode = Mode.LEARN
        return error

    @torch.no_grad()
    def _snapshot(self, *, untouched: bool = False) -> _State:
        """What has been learned; `untouched`: rounding to nearest and the biases as they are."""
        return _State(
            [None if untouched else module.learned_codes() for module, _ in self.weights],
            [module.step_size().clone() for module in self.activations],
            [module.learned if untouched else module.value(bias) for module, bias in self.biases],
        )

    def _finish(self, state: _State) -> None:
        for (module, _), codes in zip(self.weights, state.codes, strict=True):
            module.end_learning(codes)
        for activation, scale in zip(self.activations, state.scales, strict=True):
            activation.end_learning(scale)
        for (quantizer, _), learned in zip(self.biases, state.biases, strict=True):
            quantizer.end_learning(learned)


@dataclass(frozen=True)
class _Error:
    loss: float
    relative: float


@dataclass(frozen=True)
class _State:
    codes: list[Tensor | None]
    scales: list[Tensor]
    biases: list[Tensor | None]
