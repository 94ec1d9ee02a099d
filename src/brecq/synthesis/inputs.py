"""What inputs the network takes: their shape and, for pictures, the values that they can have and usually have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from brecq.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from brecq.errors import ConfigError

SCALING = 0.4
"""A larger `std` of a preprocessing is none of data: pixels in 0 to 1 deviate by 0.5 at most, photographs by 0.23."""


@dataclass(frozen=True)
class InputSpec:
    """One input [C, ...] of the network.

    Attributes:
        shape: without the batch dimension.
        low, high: smallest and largest value of each channel, [C, 1, 1]: black and white after the preprocessing;
            `None` where the inputs are no pictures.
        mean, std: expected of each channel, [C, 1, 1]; 0 and 1 where nothing is known.
    """

    shape: tuple[int, ...]
    low: Tensor | None = None
    high: Tensor | None = None
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    std: Tensor = field(default_factory=lambda: torch.ones(()))

    @property
    def is_picture(self) -> bool:
        return self.low is not None

    def clip(self, inputs: Tensor) -> Tensor:
        """Inputs [N, C, ...] moved into the valid range."""
        if self.low is None or self.high is None:
            return inputs
        low, high = (bound.to(inputs.device) for bound in (self.low, self.high))
        return torch.maximum(torch.minimum(inputs, high), low)

    def standardize(self, inputs: Tensor) -> Tensor:
        """Inputs [N, C, ...] in units of their expected deviation from their expected mean."""
        return (inputs - self.mean.to(inputs.device)) / self.std.to(inputs.device)

    def restore(self, standardized: Tensor) -> Tensor:
        """The inverse of `standardize`."""
        return standardized * self.std.to(standardized.device) + self.mean.to(standardized.device)

    def noise(self, count: int, generator: torch.Generator, scale: int = 1) -> Tensor:
        """Gaussian noise of the expected moments in the valid range, [count, C, ...], sides divided by `scale`."""
        sides = (side // scale for side in self.shape[1:])
        return self.clip(self.restore(torch.randn(count, self.shape[0], *sides, generator=generator)))


def input_spec(model: nn.Module, preprocessing: Preprocessing | None, shape: Sequence[int] | None) -> InputSpec:
    """The inputs that `model` takes, from its preprocessing, the `shape` given, or timm's metadata.

    Raises:
        ConfigError: nothing says what the inputs are, or both do, and differ.
    """
    if preprocessing is not None:
        expected = (preprocessing.channels, *preprocessing.size)
        if shape is not None and tuple(shape) != expected:
            raise ConfigError(f"shape is {tuple(shape)}, the preprocessing makes {expected}; leave shape out")
        return InputSpec(expected, *preprocessing.valid_range, *picture_moments(preprocessing))
    if shape is None:
        shape = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if shape is None:
        raise ConfigError(
            "the network does not say what its inputs look like; for pictures give --mean, --std and --size "
            "(preprocessing=brecq.data.Preprocessing(...) in Python), for others shape=(channels, ...) in Python"
        )
    if not len(shape) or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ConfigError(f"shape is {tuple(shape)}; give channels and sides without the batch, such as (3, 224, 224)")
    return InputSpec(tuple(shape))


def picture_moments(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Mean and deviation of prepared pictures, [C, 1, 1] each.

    A preprocessing that divides by the deviation of the data makes them 0 and 1. One that only scales the pixels, to
    -1 to 1 for instance, does not: then those of ImageNet's photographs are taken.
    """
    if max(preprocessing.std) < SCALING:
        one = torch.ones(preprocessing.channels, 1, 1)
        return torch.zeros_like(one), one
    order = {"BGR": (2, 1, 0), "RGB": (0, 1, 2), "GRAY": (1,)}[preprocessing.color]  # luma is mostly green
    mean, std = (torch.tensor([of[i] for i in order]).view(-1, 1, 1) for of in (IMAGENET_MEAN, IMAGENET_STD))
    offset, scale = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (mean - offset) / scale, std / scale
