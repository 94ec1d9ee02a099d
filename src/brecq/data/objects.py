"""Boxes that cannot be right, and boxes that hardly are."""

from __future__ import annotations

import torch
from torch import Tensor

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


def sticking_out(boxes: Tensor, size: tuple[int, int]) -> int:
    """How many boxes [M, 4] are beyond their picture of `size` (height, width) by more than rounding."""
    slack = SLACK * _sides(size)
    return int(((boxes[:, :2] < -slack) | (boxes[:, 2:] > _sides(size) + slack)).any(1).sum())


def _sides(size: tuple[int, int]) -> Tensor:
    return torch.tensor([size[1], size[0]], dtype=torch.float32)
