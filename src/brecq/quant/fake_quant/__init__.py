"""The fake-quantizers that PT2E's prepare puts into the graph: weights, activations, biases.

Each is a `FakeQuantizeBase` as PT2E's convert expects, and has one of four modes: let values pass (`FLOAT`), let them
pass and record their range (`OBSERVE`), quantize with learnable parameters (`LEARN`), quantize for good (`HARD`).
The arithmetic is in `affine`, `ranges`, `adaround` and `kernels`.
"""

from __future__ import annotations

from torch import nn

from brecq.quant.fake_quant.activation import OBSERVED_VALUES, ActivationFakeQuantize
from brecq.quant.fake_quant.base import BaseFakeQuantize, Mode
from brecq.quant.fake_quant.bias import BIAS_RANGE, BiasFakeQuantize
from brecq.quant.fake_quant.weight import WeightFakeQuantize

__all__ = [
    "BIAS_RANGE",
    "OBSERVED_VALUES",
    "ActivationFakeQuantize",
    "BaseFakeQuantize",
    "BiasFakeQuantize",
    "FakeQuantize",
    "Mode",
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
