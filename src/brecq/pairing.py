"""Which boxes of two detectors are the same object."""

from __future__ import annotations

import torch
from torch import Tensor

SAME = 0.5
"""Overlap (intersection over union) from which two boxes of one class are the same object."""


def partners(found: tuple[Tensor, Tensor, Tensor], expected: tuple[Tensor, Tensor, Tensor]) -> dict[int, int]:
    """Rows of `expected` by the rows of `found` that they are partners of, one each: the surest of `found` choose
    first, and each takes the box of its class that it overlaps most.

    Args:
        found, expected: boxes [M, 4] (x1, y1, x2, y2), scores [M], classes [M] (whole numbers).
    """
    boxes, scores, classes = found
    others, _, theirs = expected
    if not len(boxes) or not len(others):
        return {}
    shared = iou(boxes, others)
    shared[classes[:, None] != theirs] = 0
    pairs: dict[int, int] = {}
    for row in scores.argsort(descending=True, stable=True).tolist():
        best = int(shared[row].argmax())
        if shared[row, best] >= SAME:
            shared[:, best] = 0
            pairs[row] = best
    return pairs


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes [M, 4] with [N, 4] (x1, y1, x2, y2): [M, N]; 0 where both are empty."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    inside = (high - low).clamp(min=0).prod(2)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others)]
    return inside / (areas[0][:, None] + areas[1] - inside).clamp(min=torch.finfo(inside.dtype).tiny)
