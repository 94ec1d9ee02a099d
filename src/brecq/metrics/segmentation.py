"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brecq.errors import DataError
from brecq.labels import IGNORED as NO_LABEL
from brecq.labels import left_out, no_class
from brecq.metrics.base import Decode, Task, one_tensor

IGNORED = 255


class Segmentation(Task):
    """Mean intersection over union and pixel accuracy, in percent. Flips: pixels with another class.

    Scores [N, classes, h, w] of a lower resolution than the mask are interpolated to it (bilinear). The mean is over
    classes that occur in masks or predictions.

    Args:
        output: which output holds the scores, of several. ignore: class index in masks that does not count; -100
            does not either, as in PyTorch's losses, and `notes` say how many pixels that were.
        decode: from the network's output to scores, or to class indices [N, h, w].
    """

    name = "segmentation"
    without = "hold no pixel that counts"

    def __init__(self, output: str | None = None, ignore: int = IGNORED, decode: Decode | None = None) -> None:
        super().__init__(decode)
        self.output, self.ignore = output, ignore
        self._confusion = torch.zeros(0, 0, dtype=torch.int64)
        self._ignored = self._unlabeled = self._pixels = 0

    def _maps(self, outputs: Any) -> Tensor:
        """Scores [N, classes, h, w], or class indices [N, h, w]."""
        decoded = self.decoded(outputs)
        if isinstance(decoded, Tensor) and decoded.ndim == 3 and not decoded.is_floating_point():
            return decoded
        scores = one_tensor(decoded, self.output, "class scores [N, classes, h, w]")
        if scores.ndim != 4 or scores.shape[1] < 2:
            raise DataError(
                f"the output has shape {list(scores.shape)}; segmentation needs [N, classes, h, w] of two classes or "
                "more: give a function that makes scores, or class indices [N, h, w] (decode=..., --decode)"
            )
        return scores

    def update(self, outputs: Any, targets: Any, /) -> None:
        maps = self._maps(outputs)
        if len(targets) != len(maps):
            raise DataError(f"there are {len(targets)} masks for {len(maps)} outputs; give one for each")
        for one, mask in zip(maps, targets, strict=True):
            mask = torch.as_tensor(mask)
            if mask.ndim != 2 or mask.is_floating_point():
                raise DataError(f"a mask is {mask.dtype} {list(mask.shape)}; give class indices [h, w], integers")
            found = _classes(one, tuple(mask.shape)).cpu()
            self._add(found, mask.cpu().long(), len(one) if one.ndim == 3 else 0)

    def _add(self, found: Tensor, mask: Tensor, classes: int) -> None:
        valid = self._counts(mask)
        self._ignored += int((~valid).sum())
        self._unlabeled += int((mask == NO_LABEL).sum())
        self._pixels += mask.numel()
        found, mask = found[valid].long(), mask[valid]
        if classes and (bad := no_class(mask, classes)) is not None:
            raise DataError(
                f"a mask holds class {int(mask[bad])}, and the network has classes 0 to {classes - 1}; check that "
                f"they belong together ({self.ignore} is ignored)"
            )
        count = max(classes, len(self._confusion), *(int(x.max()) + 1 if x.numel() else 0 for x in (found, mask)))
        if count > len(self._confusion):
            grown = torch.zeros(count, count, dtype=torch.int64)
            grown[: len(self._confusion), : len(self._confusion)] = self._confusion
            self._confusion = grown
        pairs = torch.bincount(mask * len(self._confusion) + found, minlength=self._confusion.numel())
        self._confusion += pairs.view_as(self._confusion)

    def compute(self) -> dict[str, float]:
        right, total = self._confusion.diagonal(), self._confusion.sum()
        if not total:
            return {}
        union = self._confusion.sum(0) + self._confusion.sum(1) - right
        overlap = right[union > 0].double() / union[union > 0]
        return {"mIoU %": 100 * overlap.mean().item(), "pixel accuracy %": 100 * (right.sum() / total).item()}

    def _counts(self, mask: Tensor) -> Tensor:
        """Which pixels of a mask [h, w] do."""
        return (mask != self.ignore) & (mask != NO_LABEL)

    def counted(self, targets: Any) -> int:
        return sum(int(self._counts(torch.as_tensor(mask)).sum()) for mask in targets)

    def notes(self) -> list[str]:
        """How many pixels have no label; and of masks with one class beside what is ignored, as pictures of black and
        white have: black is all that counts."""
        found = left_out(self._unlabeled, self._pixels, "pixels of the masks")
        present = self._confusion.sum(1).nonzero().flatten().tolist()
        if self._ignored == self._unlabeled or len(present) != 1:
            return found
        return [
            *found,
            f"the masks hold class {present[0]} alone beside {self.ignore}, which does not count; check that they are "
            "class indices",
        ]

    def targets_of(self, outputs: Any) -> Tensor:
        maps = self._maps(outputs)
        return maps.argmax(1) if maps.ndim == 4 else maps

    def compare(self, outputs: Any, reference: Any, targets: Any = None) -> None:
        for found, expected, counted in self._pairs(outputs, reference, targets):
            self._count(int(((found != expected) & counted).sum()), int(counted.sum()))

    def _pairs(self, outputs: Any, reference: Any, targets: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Class maps of both networks, and which pixels count."""
        both = zip(self._maps(outputs), self._maps(reference), strict=True)
        for place, (found, expected) in enumerate(both):
            size = tuple(expected.shape[-2:])
            counted = torch.ones(size, dtype=torch.bool)
            if targets is not None:
                counted = self._counts(torch.as_tensor(targets[place]).cpu())
                size = tuple(counted.shape)
            yield _classes(found, size).cpu(), _classes(expected, size).cpu(), counted


def _classes(one: Tensor, size: tuple[int, ...]) -> Tensor:
    """Class indices [h, w] of scores [classes, h', w'], interpolated to `size`, or of indices of that size."""
    if one.ndim == 3:
        if one.shape[1:] != size:
            one = F.interpolate(one[None], size, mode="bilinear", align_corners=False)[0]
        return one.argmax(0)
    if one.shape != size:
        raise DataError(f"the decoded map is {list(one.shape)}, the mask {list(size)}; bring them to one size")
    return one
