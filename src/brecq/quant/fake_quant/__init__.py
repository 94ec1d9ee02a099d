"""The fake-quantizers that PT2E's prepare puts into the graph: weights, activations, biases.

Each is a `FakeQuantizeBase` as PT2E's convert expects, and has one of four modes: let values pass (`FLOAT`), let them
pass and record their range (`OBSERVE`), quantize by a learner (`LEARN`), quantize for good (`HARD`). What is settled
for good is a grid, a weight's codes, a bias's value; how it is learned is in `brecq.quant.learners`.
"""

from __future__ import annotations

from torch import nn

from brecq.quant.fake_quant.activation import ActivationFakeQuantize
from brecq.quant.fake_quant.base import BaseFakeQuantize, GridFakeQuantize, Mode
from brecq.quant.fake_quant.bias import BiasFakeQuantize
from brecq.quant.fake_quant.weight import Start, WeightFakeQuantize

__all__ = [
    "ActivationFakeQuantize",
    "BaseFakeQuantize",
    "BiasFakeQuantize",
    "FakeQuantize",
    "GridFakeQuantize",
    "Mode",
    "Start",
    "WeightFakeQuantize",
    "set_mode",
]

FakeQuantize = WeightFakeQuantize | ActivationFakeQuantize | BiasFakeQuantize


def set_mode(module: nn.Module, mode: Mode, *, activations: Mode | None = None) -> None:
    """Set the mode of all fake-quantizers in `module`; activations may differ from weights and biases."""
    for child in module.modules():
        if isinstance(child, ActivationFakeQuantize):
            child.mode = activations or mode
        elif isinstance(child, BaseFakeQuantize):
            child.mode = mode
