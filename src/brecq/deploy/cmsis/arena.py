"""Where tensors lie in one block of memory: those that are not alive together share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 16


@dataclass(frozen=True)
class Alive:
    """A buffer of `size` bytes that is needed from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


def place(buffers: Mapping[str, Alive]) -> dict[str, int]:
    """An offset for each buffer, multiples of 16: largest first, each in the lowest place that is free in its time."""
    found: dict[str, int] = {}
    for name in sorted(buffers, key=lambda name: (-buffers[name].size, buffers[name].first, name)):
        mine = buffers[name]
        taken = sorted(
            (found[other], found[other] + buffers[other].size)
            for other in found
            if buffers[other].first <= mine.last and mine.first <= buffers[other].last
        )
        start = 0
        for begin, end in taken:
            if begin - start >= mine.size:
                break
            start = max(start, _aligned(end))
        found[name] = start
    return found


def size(buffers: Mapping[str, Alive], places: Mapping[str, int]) -> int:
    """Bytes of the whole block."""
    return _aligned(max((places[name] + each.size for name, each in buffers.items()), default=0))


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def lives(steps: Sequence[tuple[Sequence[str], Sequence[str]]]) -> dict[str, tuple[int, int]]:
    """First and last step of each name, from what each step reads and writes."""
    found: dict[str, tuple[int, int]] = {}
    for number, (reads, writes) in enumerate(steps):
        for name in (*reads, *writes):
            first, _ = found.get(name, (number, number))
            found[name] = (first, number)
    return found
