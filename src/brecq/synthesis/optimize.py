"""One batch of distilled inputs: from the start to inputs whose statistics are those of the training data."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from brecq.errors import ConfigError
from brecq.logits import scores
from brecq.synthesis.config import DistillConfig
from brecq.synthesis.inputs import InputSpec
from brecq.synthesis.latent import Generator, Pixels, make_latent
from brecq.synthesis.match import Moments, matching_loss
from brecq.synthesis.norms import watch_inputs
from brecq.synthesis.swing import swing_convolutions
from brecq.synthesis.teacher import Teacher
from brecq.synthesis.terms import class_loss, entropy_loss, input_loss, total_variation

TELL_EVERY = 10
"""Steps between two reports of the loss: reading it waits for the device."""


@dataclass(frozen=True)
class Batch:
    """Distilled inputs, float32 [N, C, ...] on the CPU, and the matching loss at the first and the last step."""

    inputs: Tensor
    loss_before: float
    loss_after: float


def optimize_batch(
    teacher: Teacher, count: int, config: DistillConfig, generator: torch.Generator, tell: Callable[[int, float], None]
) -> Batch:
    """Distill `count` inputs.

    Args:
        generator: of all that is random in this batch, on the CPU: start, classes, shifts and flips.
        tell: receives the steps done and the matching loss, now and then.

    Raises:
        ConfigError: the loss is no longer finite.
    """
    latent = make_latent(teacher.spec, count, config, generator).to(teacher.device)
    classes = torch.randint(max(teacher.classes, 1), (count,), generator=generator).to(teacher.device)
    stored = {name: Moments.of(module) for name, module in teacher.norms.items()}
    coarse_steps = round(config.coarse * config.steps)
    losses: list[float] = []

    def descend(seen: list[tuple[str, Tensor]], start: int, stop: int) -> None:
        optimizer = torch.optim.Adam(latent.groups())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(stop - start, 1))
        for step in range(start, stop):
            inputs = latent()
            seen.clear()
            logits = teacher.model(random_view(inputs, config, generator))
            matching = matching_loss(seen, stored)
            loss = matching + other_terms(inputs, logits, classes, teacher.spec, config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            latent.project()
            if step == 0 or (step + 1) % TELL_EVERY == 0 or step + 1 == config.steps:
                losses.append(_finite(matching))
                tell(step + 1, losses[-1])

    swing = swing_convolutions(teacher.model, generator) if config.swing else nullcontext()
    with watch_inputs(teacher.norms) as seen, swing:
        descend(seen, 0, coarse_steps)
        if config.coarse:
            latent.refine()
        descend(seen, coarse_steps, config.steps)
    return Batch(_result(latent), losses[0], losses[-1])


def random_view(inputs: Tensor, config: DistillConfig, generator: torch.Generator) -> Tensor:
    """Inputs [N, C, ...] rolled by up to `config.shift` in each spatial dimension; pictures perhaps mirrored."""
    dims = tuple(range(2, inputs.dim()))
    if config.shift and dims:
        shifts = torch.randint(-config.shift, config.shift + 1, (len(dims),), generator=generator).tolist()
        inputs = torch.roll(inputs, shifts, dims)
    if inputs.dim() != 4:
        return inputs
    if config.flip and torch.rand((), generator=generator) < 0.5:
        inputs = inputs.flip(3)
    return inputs.contiguous(memory_format=torch.channels_last)  # half the time of a step on the CPU


def other_terms(inputs: Tensor, logits: object, classes: Tensor, spec: InputSpec, config: DistillConfig) -> Tensor:
    """What `config` adds to the matching of statistics, weighted."""
    loss = inputs.new_zeros(())
    if spec.is_picture and config.input_weight:
        loss = loss + config.input_weight * input_loss(spec.standardize(inputs))
    if config.smoothness:
        loss = loss + config.smoothness * total_variation(inputs)
    if config.target != "none":
        found = scores(logits)
        assert found is not None  # the teacher was tried
        term = class_loss(found, classes) if config.target == "class" else entropy_loss(found)
        loss = loss + config.target_weight * term
    return loss


@torch.no_grad()
def _result(latent: Pixels | Generator) -> Tensor:
    return latent().detach().float().cpu().contiguous(memory_format=torch.contiguous_format).clone()


def _finite(loss: Tensor) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ConfigError(f"the loss of the distillation became {value}; lower lr")
    return value
