"""What learns what: the learner of each kind of fake-quantizer, in the blocks and in the end-to-end tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from brecq.config import Recipe
from brecq.quant.fake_quant import ActivationFakeQuantize, BiasFakeQuantize, WeightFakeQuantize
from brecq.quant.learners import (
    AdaRound,
    BiasShift,
    GivenStep,
    GridLearner,
    Learner,
    MovingCodes,
    Rate,
    StepSize,
    TunedScale,
)


class Choice(NamedTuple):
    """Makes the learner of a weight (with its value), an activation, a bias (with its value)."""

    weight: Callable[[WeightFakeQuantize, Tensor], GridLearner]
    activation: Callable[[ActivationFakeQuantize], GridLearner]
    bias: Callable[[BiasFakeQuantize, Tensor], Learner]


def for_block(recipe: Recipe, drop: float) -> Choice:
    """Rounding, step sizes and biases of one block. `drop`: QDrop's probability."""
    log_space = recipe.step_space == "log"
    return Choice(_adaround, lambda module: _step(module, log_space, drop), _shift)


def for_tuning(codes: bool) -> Choice:
    """Steps and biases of the whole network, and codes if they are to move."""
    learner = MovingCodes if codes else TunedScale
    return Choice(
        lambda module, weight: learner(module.integers(weight), module.grid),
        lambda module: _step(module, True, 0.0),
        _shift,
    )


def parameter_groups(learners: Sequence[Learner], recipe: Recipe) -> list[dict[str, Any]]:
    """For the optimizer of a block: the parameters of each learning rate that the recipe has; `falling` is the first
    value of a rate that falls to 0."""
    rates: dict[Rate, float] = {"rounding": recipe.rounding_lr, "step": recipe.step_lr, "bias": recipe.bias_lr}
    groups = []
    for name, rate in rates.items():
        parameters = [p for learner in learners for p in learner.groups().get(name, ())]
        falling = {"falling": rate} if name == "step" and recipe.step_schedule == "cosine" else {}
        groups += [{"params": parameters, "lr": rate, **falling}] if parameters else []
    return groups


def adam(parameters: Any, device: torch.device) -> torch.optim.Adam:
    """Adam, on CUDA in one kernel for all parameters."""
    return torch.optim.Adam(parameters, fused=True if device.type == "cuda" else None)


def _step(module: ActivationFakeQuantize, log_space: bool, drop: float) -> GridLearner:
    if module.divides is not None:
        return GivenStep(module.grid, drop=drop)
    return StepSize(module.grid, log_space=log_space, drop=drop)


def _adaround(module: WeightFakeQuantize, weight: Tensor) -> AdaRound:
    start = module.start
    return AdaRound(weight, module.grid) if start is None else AdaRound(start.weight, module.grid, start.codes)


def _shift(module: BiasFakeQuantize, bias: Tensor) -> BiasShift:
    unit = bias.detach().square().mean().sqrt() if module.unit is None else module.unit
    return BiasShift(module.value(bias), unit)
