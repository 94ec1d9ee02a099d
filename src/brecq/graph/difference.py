"""How far two outputs of a network are apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output.detach().clone()]
    if isinstance(output, Mapping):
        parts: Sequence[Any] = list(output.values())
    elif isinstance(output, (list, tuple)):
        parts = output
    elif dataclasses.is_dataclass(output):
        parts = [getattr(output, field.name) for field in dataclasses.fields(output)]
    else:
        parts = []
    return [tensor for part in parts for tensor in flat(part)]


def largest(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest relative difference of two outputs; infinite if they are of different make."""
    if len(expected) != len(found):
        return float("inf")
    return max((difference_of(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)


def difference_of(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest value in either; of integers, the share that
    differs beyond 1 %, as an argmax may fall otherwise."""
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        share = (a != b).double().mean().item()
        return share if share > 0.01 else 0.0
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    distance = torch.where(same, 0.0, (a - b).abs().double())
    if not bool(distance.isfinite().all()):
        return float("inf")
    largest = torch.where(same & ~a.isfinite(), 0.0, torch.maximum(a.abs(), b.abs()).double()).max()
    return float(distance.max() / largest)
