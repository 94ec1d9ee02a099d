"""Differences between two networks' outputs, summed over batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brecq import logits

SAME = 1e-3
"""Difference in output steps up to which values count as equal."""


@dataclass(frozen=True)
class Comparison:
    """How far one network's outputs are from another's.

    Attributes:
        identical: percent of output values that are equal up to a thousandth of an output step: float outputs may
            differ in their last bits, a different code cannot hide there.
        largest, mean: absolute difference, in output steps.
        agreement: percent of predictions (samples, or pixels or tokens) that are equal; `None` where no output holds
            class scores (`brecq.logits.classifier`).
    """

    identical: float
    largest: float
    mean: float
    agreement: float | None


class Tally:
    """Collects outputs batch by batch. `steps` holds the unit of each output tensor, `names` what each is called."""

    def __init__(self, names: Sequence[str] = ("",), class_axis: int | None = None) -> None:
        self.names, self.class_axis = names, class_axis
        self.values = self.equal = self.predictions = self.agreeing = 0
        self.largest = self.sum = 0.0

    def add(self, found: Sequence[Tensor], expected: Sequence[Tensor], steps: Sequence[float]) -> None:
        for ours, theirs, step in zip(found, expected, steps, strict=True):
            difference = (ours.double() - theirs.double()).abs() / step
            self.values += difference.numel()
            self.equal += int((difference <= SAME).sum())
            self.largest = max(self.largest, float(difference.max()))
            self.sum += float(difference.sum())
        outputs = dict(zip(self.names, zip(found, expected, strict=True), strict=True))
        name = logits.classifier({key: ours for key, (ours, _) in outputs.items()}, self.class_axis)
        axis = None if name is None else logits.class_axis(outputs[name][0], self.class_axis)
        if name is not None and axis is not None:
            ours, theirs = outputs[name]
            same = ours.argmax(axis) == theirs.argmax(axis)
            self.predictions += same.numel()
            self.agreeing += int(same.sum())

    def result(self) -> Comparison:
        agreement = 100 * self.agreeing / self.predictions if self.predictions else None
        return Comparison(100 * self.equal / self.values, self.largest, self.sum / self.values, agreement)


@dataclass(frozen=True)
class CodesCompared:
    """The codes of one quantized tensor in the runtime against those in the simulator.

    `tensor` is its name in `Completed.quantizers`; `differing` of `count` codes differ, by at most `largest`. The
    values that these are rounded from are at most `border` steps from halfway between the two codes.
    """

    tensor: str
    count: int
    differing: int
    largest: int
    border: float = 0.0


class CodesTally:
    """Collects codes batch by batch, tensor by tensor, in order of execution."""

    def __init__(self) -> None:
        self.tensors: dict[str, CodesCompared] = {}

    def add(self, tensor: str, found: Tensor, expected: Tensor, border: float = 0.0) -> None:
        """The codes of one tensor; shapes may differ where data was moved, their order may not."""
        difference = (found.reshape(-1).to(torch.int16) - expected.reshape(-1).to(torch.int16)).abs()
        before = self.tensors.get(tensor, CodesCompared(tensor, 0, 0, 0))
        self.tensors[tensor] = CodesCompared(
            tensor,
            before.count + difference.numel(),
            before.differing + int((difference > 0).sum()),
            max(before.largest, int(difference.max())),
            max(before.border, border),
        )
