"""Boxes of two detectors on one picture: which both found, which only one, and what is written beside which."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brecq.page.record import Box, Detected
from brecq.pairing import partners

NAMED = 0.01
"""Share of the picture from which a box that both found has room for its name."""


@dataclass(frozen=True)
class Drawn:
    """A box as it is drawn. `kind`: `float` or `quantized`; `text` is empty where there is no room or need for it."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    text: str
    alone: bool


@dataclass(frozen=True)
class Boxes:
    """Boxes of both networks; `both`, `floating`, `quantized`: how many they agree on, and only one of them has."""

    drawn: list[Drawn]
    both: int
    floating: int
    quantized: int


def compare(found: Detected) -> Boxes:
    """Sort the boxes of a picture. Of two that are the same object the quantized network's carries the name."""
    pairs = partners(_tensors(found.quantized), _tensors(found.floating))
    matched = set(pairs.values())
    area = found.width * found.height
    drawn = [_drawn("float", box, place not in matched, area) for place, box in enumerate(found.floating)]
    drawn += [_drawn("quantized", box, place not in pairs, area) for place, box in enumerate(found.quantized)]
    return Boxes(drawn, len(pairs), len(found.floating) - len(pairs), len(found.quantized) - len(pairs))


def _drawn(kind: str, box: Box, alone: bool, area: float) -> Drawn:
    *corners, score, name = box
    x1, y1, x2, y2 = map(float, corners)
    width, height = round(x2 - x1, 1), round(y2 - y1, 1)
    named = alone or (kind == "quantized" and width * height >= NAMED * area)
    return Drawn(kind, x1, y1, width, height, f"{name} {float(score):.2f}" if named else "", alone)


def _tensors(boxes: list[Box]) -> tuple[Tensor, Tensor, Tensor]:
    """Corners [M, 4], scores [M], and for each class name a number that is the same for both networks: [M]."""
    corners = torch.tensor([[float(value) for value in box[:4]] for box in boxes]).view(-1, 4)
    return corners, torch.tensor([float(box[4]) for box in boxes]), torch.tensor([hash(box[5]) for box in boxes])
