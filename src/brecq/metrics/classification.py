"""Classification: the class with the largest score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from brecq import logits
from brecq.errors import DataError
from brecq.labels import counted, left_out, no_class
from brecq.metrics.base import Decode, Task, batched, one_tensor


class Classification(Task):
    """Top-1, and top-5 with more than five classes, in percent. Flips: samples with another top-1 class.

    Labels of -100 do not count, as in PyTorch's losses, and `notes` say how many they were. A sample without a label
    may flip all the same; a position in a sample (a token) may not.

    Args:
        output: which output holds scores [N, classes]. class_axis: of scores with another layout.
    """

    name = "classification"
    without = "are -100, all of them"

    def __init__(self, output: str | None = None, class_axis: int | None = None, decode: Decode | None = None) -> None:
        super().__init__(decode)
        self.output, self.class_axis = output, class_axis
        self._samples = self._top1 = self._top5 = self._ignored = 0
        self._has_top5 = False

    def _scores(self, outputs: Any) -> Tensor:
        """[N, ..., classes]"""
        scores = one_tensor(self.decoded(outputs), self.output, "class scores")
        try:
            axis = logits.class_axis(scores, self.class_axis)
        except ValueError as error:
            raise DataError(f"{error}; give an axis of classes") from error
        if axis is None:
            raise DataError(f"the output {list(scores.shape)} holds no class scores [N, classes]; give another task")
        return scores.movedim(axis, -1)

    def update(self, outputs: Any, targets: Any, /) -> None:
        scores, labels = self._scores(outputs), batched(targets, "class indices").to("cpu")
        if labels.is_floating_point() or labels.shape != scores.shape[:-1]:
            raise DataError(
                f"the targets are {labels.dtype} {list(labels.shape)}, the scores {list(scores.shape)}; give one "
                "class index for each"
            )
        if (bad := no_class(labels, scores.shape[-1])) is not None:
            raise DataError(
                f"there is a label {int(labels.flatten()[bad])}, and the network has classes 0 to "
                f"{scores.shape[-1] - 1}; check that the labels count from 0 and belong to it"
            )
        best = scores.topk(min(5, scores.shape[-1]), dim=-1).indices.cpu()
        hits = best == labels[..., None]  # a label of -100 is hit by none
        self._samples += int(counted(labels).sum())
        self._ignored += int((~counted(labels)).sum())
        self._top1 += int(hits[..., 0].sum())
        self._top5 += int(hits.sum())
        self._has_top5 = scores.shape[-1] > 5

    def compute(self) -> dict[str, float]:
        if not self._samples:
            return {}
        found = {"top-1 %": 100 * self._top1 / self._samples}
        return found | ({"top-5 %": 100 * self._top5 / self._samples} if self._has_top5 else {})

    def notes(self) -> list[str]:
        return left_out(self._ignored, self._samples + self._ignored, "labels")

    def counted(self, targets: Any) -> int:
        return int(counted(batched(targets, "class indices")).sum())

    def targets_of(self, outputs: Any) -> Tensor:
        return self._scores(outputs).argmax(-1)

    def compare(self, outputs: Any, reference: Any, targets: Any = None) -> None:
        found, expected = self.targets_of(outputs), self.targets_of(reference)
        counts = torch.ones(expected.shape, dtype=torch.bool, device=expected.device)
        if targets is not None and expected.ndim > 1:
            counts = counted(batched(targets, "class indices")).to(expected.device)
        self._count(int(((found != expected) & counts).sum()), int(counts.sum()))
