"""Which settings of a configuration change nothing, because another setting switches off what they are about.

A value that does nothing is no error in a program, where configurations are made of others; the command line refuses
an option that was given in vain. `tests/test_settings.py` checks every line here on runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from brecq.config import FLOAT, WIDE, QuantConfig, Recipe

RANGES = ("range_norm", "range_candidates", "range_samples")
ROUNDING = ("rounding_lr", "rounding_penalty", "beta", "warmup")
STEPS = ("step_lr", "step_space", "step_schedule", "qdrop")
SECOND = ("activation_norm", "activation_inputs")
CLOSED = ("damping", "correction")
TUNING = ("tune_lr", "tune_codes_lr", "tune_features")
LEARNED = (
    "steps", "batch_size", "joint", "activation_steps", "bias_lr", "normalize_loss", "tuning", *ROUNDING, *STEPS,
    *TUNING,
)  # fmt: skip
"""Settings of a recipe that are about steps along the gradient."""

EVERY = tuple(each.name for each in fields(Recipe) if each.name not in ("name", "held_out", *RANGES))


NEAREST = "rounding to nearest (--method rtn, or a search's --quality fast) learns nothing"


@dataclass(frozen=True)
class Idle:
    """`settings` do nothing where `when` holds, because of `why`."""

    settings: tuple[str, ...]
    why: str
    when: Callable[[QuantConfig], bool]


def _activations(config: QuantConfig) -> bool:
    """Whether any may be quantized."""
    ruled = any(rule.activations not in (None, FLOAT) for rule in config.rules)
    return config.activations != FLOAT or ruled or config.target is not None


def _narrow(config: QuantConfig) -> bool:
    """Whether any activation may have fewer than 16 bits."""
    ruled = any((rule.activations or FLOAT) < WIDE for rule in config.rules)
    return config.activations < WIDE or ruled or (config.target is not None and config.activations != WIDE)


def _weights(config: QuantConfig) -> bool:
    ruled = any(rule.weights not in (None, FLOAT) for rule in config.rules)
    return config.weights != FLOAT or ruled


IDLE = (
    Idle((*EVERY, "recipe", "autocast"), NEAREST, lambda c: c.method == "rtn"),
    Idle((*(set(LEARNED) - {"steps", "activation_steps", "joint"}), "autocast"),
         "a recipe of 0 steps takes none along the gradient", lambda c: not c.learns),
    Idle(("tuning",), "it is a multiple of steps, which is 0", lambda c: not c.recipe.steps),
    Idle(TUNING, "there is no end-to-end tuning (tuning, or both of its rates, are 0)",
         lambda c: not c.recipe.tuning_steps),
    Idle(CLOSED, "there is no closed form (compensate is off)", lambda c: not c.recipe.compensate),
    Idle(("fisher_labels",), "the loss is plain, without Fisher information", lambda c: c.recipe.loss == "plain"),
    Idle(("outputs",), "the loss is plain, without Fisher information",
         lambda c: c.recipe.loss == "plain" and not c.auto_high_precision),
    Idle(SECOND, "there is no second stage (activation_steps is 0)", lambda c: not c.recipe.activation_steps),
    Idle((*STEPS, *SECOND, "activation_steps", "activation_scheme", "placement", "first_last_outputs"),
         "activations stay in float", lambda c: not _activations(c)),
    Idle(("first_last_outputs",), "activations have as many bits as first and last layers",
         lambda c: not c.has_wider_ends),
    Idle(("qdrop",), "rounding activations to 16 bits changes next to nothing", lambda c: not _narrow(c)),
    Idle(("range_samples",), "activations stay in float, and nothing is computed in closed form",
         lambda c: not _activations(c) and not c.recipe.compensate),
    Idle((*ROUNDING, "compensate", *CLOSED, "weight_scheme", "tune_codes_lr", "bias_lr"), "weights stay in float",
         lambda c: not _weights(c)),
    Idle(("beta", "warmup"), "there is no regularizer (rounding_penalty is 0)",
         lambda c: not c.recipe.rounding_penalty),
    Idle(("rounding_penalty", "beta", "warmup"), "rounding is not learned (rounding_lr is 0)",
         lambda c: not c.recipe.rounding_lr),
    Idle(STEPS, "no stage learns step sizes (joint is off, and activation_steps is 0)",
         lambda c: not c.recipe.joint and not c.recipe.activation_steps),
)  # fmt: skip


def without_effect(config: QuantConfig) -> dict[str, str]:
    """Names of settings of `config` and of its recipe that change nothing in it, each with the reason."""
    found: dict[str, str] = {}
    for idle in IDLE:
        if idle.when(config):
            for name in idle.settings:
                found.setdefault(name, idle.why)
    return found
