"""What inputs the network takes: their shape, and the values that a picture can have once it is prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brecq.data.preprocessing import Preprocessing
from brecq.errors import ConfigError


@dataclass(frozen=True)
class InputSpec:
    """One input [C, ...] of the network.

    Attributes:
        shape: without the batch dimension.
        low, high: smallest and largest value of each channel, [C, 1, 1]: black and white after the preprocessing;
            `None` where the inputs are no pictures. Then nothing is known of their mean and variance either.
    """

    shape: tuple[int, ...]
    low: Tensor | None = None
    high: Tensor | None = None

    @property
    def is_picture(self) -> bool:
        return self.low is not None

    def clip(self, inputs: Tensor) -> Tensor:
        """Inputs [N, C, ...] moved into the valid range."""
        if self.low is None or self.high is None:
            return inputs
        low, high = (bound.to(inputs.device) for bound in (self.low, self.high))
        return torch.maximum(torch.minimum(inputs, high), low)

    def noise(self, count: int, generator: torch.Generator, scale: int = 1) -> Tensor:
        """Gaussian noise of mean 0 and variance 1 in the valid range, float32 [count, C, ...], sides over `scale`."""
        sides = (side // scale for side in self.shape[1:])
        return self.clip(torch.randn(count, self.shape[0], *sides, generator=generator))


def input_spec(model: nn.Module, preprocessing: Preprocessing | None, shape: Sequence[int] | None) -> InputSpec:
    """The inputs that `model` takes, from its preprocessing, the `shape` given, or timm's metadata.

    Raises:
        ConfigError: nothing says what the inputs are, or both do, and differ.
    """
    if preprocessing is not None:
        expected = (3, *preprocessing.size)
        if shape is not None and tuple(shape) != expected:
            raise ConfigError(f"shape is {tuple(shape)}, the preprocessing makes {expected}; leave shape out")
        return InputSpec(expected, *preprocessing.valid_range)
    if shape is None:
        shape = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if shape is None:
        raise ConfigError(
            "the network does not say what its inputs look like; give preprocessing=brecq.data.Preprocessing(...) for "
            "pictures, otherwise shape=(channels, ...)"
        )
    if not len(shape) or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ConfigError(f"shape is {tuple(shape)}; give channels and sides without the batch, such as (3, 224, 224)")
    return InputSpec(tuple(shape))
