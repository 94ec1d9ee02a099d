"""Boxes of two detectors on one picture: which both found, which only one, and what is written beside which."""

from __future__ import annotations

from dataclasses import dataclass

from brecq.page.record import Box, Detected

LEAST = 0.5
"""Overlap (intersection over union) of two boxes of a class that are the same object, as flips are counted."""

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
    pairs = _pairs(found.quantized, found.floating)
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


def _pairs(found: list[Box], expected: list[Box]) -> dict[int, int]:
    """Places of `expected` by those of `found`, the surest first."""
    pairs: dict[int, int] = {}
    for place in sorted(range(len(found)), key=lambda each: -float(found[each][4])):
        free = [each for each in range(len(expected)) if each not in pairs.values()]
        same = [each for each in free if expected[each][5] == found[place][5]]
        best = max(same, key=lambda each: _overlap(found[place], expected[each]), default=None)
        if best is not None and _overlap(found[place], expected[best]) >= LEAST:
            pairs[place] = best
    return pairs


def _overlap(first: Box, second: Box) -> float:
    ax1, ay1, ax2, ay2 = map(float, first[:4])
    bx1, by1, bx2, by2 = map(float, second[:4])
    width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    if width <= 0 or height <= 0:
        return 0.0
    inside = width * height
    return inside / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inside)
