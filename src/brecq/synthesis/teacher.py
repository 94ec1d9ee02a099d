"""Prepare the network whose statistics are matched, or say why it cannot be distilled."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from brecq.devices import move
from brecq.errors import ConfigError
from brecq.logits import scores
from brecq.synthesis.config import DistillConfig
from brecq.synthesis.inputs import InputSpec
from brecq.synthesis.norms import find_batch_norms, watch_inputs

_OTHERWISE = (
    "calibrate on real data (--calib DIR), on random crops of photographs (brecq.data.random_crops), or on pictures "
    "of random shapes (--distill-preset leaves), in this order of preference"
)


@dataclass(frozen=True)
class Teacher:
    """The network whose statistics are matched: a frozen copy in eval mode on its device.

    Attributes:
        norms: its batch norms that take part in a forward pass, by name. classes: of its logits, 0 where its output
            is something else. spec: of its input.
    """

    model: nn.Module
    norms: dict[str, nn.Module]
    spec: InputSpec
    classes: int
    device: torch.device


def prepare_teacher(model: nn.Module, spec: InputSpec, config: DistillConfig, device: torch.device) -> Teacher:
    """Copy, freeze and try the network on two inputs of noise.

    Raises:
        ConfigError: no batch norm, none that runs, inputs of another kind, or no logits for `config.target`.
    """
    if any(isinstance(module, nn.Embedding) for module in model.modules()) and not find_batch_norms(model):
        raise ConfigError(
            "the network has no batch norm and embeds tokens: token ids cannot be distilled, as they have no "
            "gradient; calibrate on text of yours"
        )
    if not find_batch_norms(model):
        raise ConfigError(
            "the network has no batch norm, so that nothing in it remembers the statistics of its training data (a "
            ".pt2 program has lost its batch norms: distill from the module it was exported from); " + _OTHERWISE
        )
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    move(copied, device)
    if len(spec.shape) == 3:
        copied = copied.to(memory_format=torch.channels_last)
    norms, output = _try(copied, spec, device, scale=1)
    if config.coarse:
        _try(copied, spec, device, scale=2)
    return Teacher(copied, norms, spec, _classes(output, config), device)


def _try(model: nn.Module, spec: InputSpec, device: torch.device, scale: int) -> tuple[dict[str, nn.Module], Any]:
    """The batch norms that see a forward pass, and its output."""
    probe = spec.noise(2, torch.Generator().manual_seed(0), scale).to(device)
    norms = find_batch_norms(model)
    try:
        with watch_inputs(norms) as seen, torch.no_grad():
            output = model(probe)
    except Exception as error:
        hint = "set coarse=0" if scale > 1 else "distillation needs a network with one floating-point input"
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the network takes no input {list(probe.shape)} ({type(error).__name__}: {reason}); {hint}"
        ) from error
    names = {name for name, _ in seen}
    if not names:
        raise ConfigError(f"none of the network's {len(norms)} batch norms takes part in a forward pass; {_OTHERWISE}")
    return {name: module for name, module in norms.items() if name in names}, output


def _classes(output: Any, config: DistillConfig) -> int:
    """Number of classes where the output is logits [2, classes], otherwise 0."""
    logits = scores(output)
    if logits is not None and logits.dim() == 2 and logits.shape[1] > 1:
        return int(logits.shape[1])
    if config.target != "none":
        raise ConfigError(f"target is {config.target!r}, but the network's output is no logits [N, classes]; use none")
    return 0
