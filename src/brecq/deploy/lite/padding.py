"""Padding: PyTorch's as numbers on each side, LiteRT's as SAME or VALID, and zeros of its own where neither fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brecq.deploy.lite.program import Tensor, constant

if TYPE_CHECKING:
    from brecq.deploy.lite.lowering import Lowering

SAME, VALID = 0, 1
"""Of the schema."""

Sides = tuple[int, int]


def pair(value: Any) -> list[int]:
    """A number for height and one for width."""
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(each) for each in (found * 2)[:2]]


def windows(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], pads: Sequence[Sides], dilation: Sequence[int]
) -> list[int]:
    """Height and width of what windows of this kind make of a picture."""
    return [
        (length + sum(sides) - spread * (taps - 1) - 1) // step + 1
        for length, taps, step, sides, spread in zip(size, kernel, stride, pads, dilation, strict=True)
    ]


def same(length: int, taps: int, step: int, spread: int) -> Sides:
    """The padding that SAME stands for."""
    outputs = -(-length // step)
    total = max((outputs - 1) * step + (taps - 1) * spread + 1 - length, 0)
    return total // 2, total - total // 2


def pooling(
    low: Lowering,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[Sides],
    dilation: Sequence[int],
    fill: int | float,
    explicit: bool = False,
) -> tuple[Tensor, int]:
    """A channels-last tensor and the padding of the schema that together pad as asked.

    Args:
        fill: the code or number that stands around the picture, zero points being 0; for codes, 0 means the zero
            point. explicit: do not use SAME.
    """
    if not any(map(any, pads)):
        return x, VALID
    if not explicit and all(
        tuple(sides) == same(*each) for sides, *each in zip(pads, x.shape[1:3], kernel, stride, dilation, strict=True)
    ):
        return x, SAME
    return around(low, x, pads, fill), VALID


def around(low: Lowering, x: Tensor, pads: Sequence[Sides], fill: int | float = 0) -> Tensor:
    """A channels-last tensor with something around it; negative numbers are not for here."""
    sides = [(0, 0), *pads, (0, 0)]
    shape = [length + sum(each) for length, each in zip(x.shape, sides, strict=True)]
    amounts = constant("pads", np.array(sides, np.int32))
    name = f"{x.name}_padded"
    if not fill:
        return low.build.emit("PAD", [x, amounts], name, shape, x)
    value = np.array([fill], x.dtype)
    filling = Tensor("fill", (1,), x.dtype, x.quantization, value)
    return low.build.emit("PADV2", [x, amounts, filling], name, shape, x)
