"""The objects of a picture: boxes and what belongs to them; which cannot be right, and which hardly are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from brecq.data.preprocessing import Preprocessing

SLACK = 0.01
"""Share of a picture's side by which labels are beyond it for rounding alone, as the tools around YOLO have it."""


def no_box(boxes: Tensor, size: tuple[int, int] | None = None) -> tuple[int, str] | None:
    """The row of the first box that cannot be one, and why; `None` if all can. What sticks out of the picture can.

    Args:
        boxes: [M, 4] (x1, y1, x2, y2), floating. size: height and width of the picture, where they are known.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    reasons = {
        "is not finite": ~boxes.isfinite().all(1),
        "has no area: its right side is to be beyond its left one, the lower beyond the upper": (high <= low).any(1),
    }
    if size is not None:
        outside = (high <= 0).any(1) | (low >= _sides(size)).any(1)
        reasons[f"is wholly outside its picture of {size[1]}x{size[0]} pixels"] = outside
    wrong = torch.stack(list(reasons.values()), 1)
    rows = wrong.any(1).nonzero()
    if not len(rows):
        return None
    row = int(rows[0])
    return row, list(reasons)[int(wrong[row].nonzero()[0])]


def no_object(target: Mapping[str, Tensor]) -> tuple[int, str] | None:
    """The row of the first object with another value that cannot be right, and why; `None` if all can be.

    Args:
        target: of a picture, those that it has of `area` [M], `iscrowd` [M] and `labels` [M].
    """
    for name, value in target.items():
        if name not in _POSSIBLE:
            continue
        possible, why = _POSSIBLE[name]
        wrong = (~possible(value)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            return row, f"has {name} {value[row].item():g}, {why}"
    return None


def _whole(value: Tensor) -> Tensor:
    return value == value.long() if value.is_floating_point() else torch.ones_like(value, dtype=torch.bool)


_POSSIBLE = {
    "area": (lambda v: v.isfinite() & (v >= 0), "no number of pixels; without one it is that of the box"),
    "iscrowd": (lambda v: (v == 0) | (v == 1), "which is 1 for a crowd, and otherwise 0"),
    "labels": (lambda v: (v >= 0) & _whole(v), "no class; classes are whole numbers from 0"),
}


def target_of(
    boxes: Sequence[Sequence[float]], labels: Sequence[int], categories: Sequence[int], image: Image.Image,
    preprocessing: Preprocessing, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A target of `brecq.metrics.Detection`; boxes are x1, y1, x2, y2 in pixels of the picture."""
    placed = preprocessing.place(image.height, image.width)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "categories": torch.tensor(categories, dtype=torch.int64),
        "placed": tuple(asdict(placed).values()),
        "size": (image.height, image.width),
        **more,
    }


def sticking_out(boxes: Tensor, size: tuple[int, int]) -> int:
    """How many boxes [M, 4] are beyond their picture of `size` (height, width) by more than rounding."""
    slack = SLACK * _sides(size)
    return int(((boxes[:, :2] < -slack) | (boxes[:, 2:] > _sides(size) + slack)).any(1).sum())


def _sides(size: tuple[int, int]) -> Tensor:
    return torch.tensor([size[1], size[0]], dtype=torch.float32)
