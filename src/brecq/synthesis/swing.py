"""Swing convolution: strided convolutions see a randomly shifted input, so that no pixel is favoured.

A convolution of stride s reads some pixels more often than others, and its gradient draws a checkerboard into a
distilled image. Padding the input by s - 1 reflected pixels and cutting out a window of the old size at random
evens that out. Jeon et al., "Genie: Show Me the Data for Quantization" (CVPR 2023), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def swing_convolutions(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Inside, every strided convolution of `model` swings; `generator` (on the CPU) draws the shifts."""

    def swing(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        assert isinstance(module, _CONVOLUTIONS)
        return (random_window(inputs[0], module.stride, generator), *inputs[1:])

    strided = [m for m in model.modules() if isinstance(m, _CONVOLUTIONS) and max(m.stride) > 1]
    handles = [module.register_forward_pre_hook(swing) for module in strided]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def random_window(x: Tensor, stride: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Shift [N, C, ...] by up to stride - 1 pixels in each spatial dimension, the edge reflected; same shape."""
    sizes = x.shape[2:]
    reach = [min(step, size) - 1 for step, size in zip(stride, sizes, strict=True)]
    if not any(reach):
        return x
    padded = F.pad(x, [side for pad in reversed(reach) for side in (pad, pad)], mode="reflect")
    for dim, (pad, size) in enumerate(zip(reach, sizes, strict=True), start=2):
        start = int(torch.randint(2 * pad + 1, (1,), generator=generator))
        padded = padded.narrow(dim, start, size)
    return padded
