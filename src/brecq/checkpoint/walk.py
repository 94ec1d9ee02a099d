"""A resumable walk: units of work in order, each saved when it is finished, or taken over from an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from brecq import ranks
from brecq.checkpoint.resume import BlockState, RunState
from brecq.progress import Progress
from brecq.report import BlockReport


class Units(Protocol):
    """What a walk works on. `independent`: no unit needs what comes of those before it."""

    independent: bool

    @property
    def names(self) -> Sequence[str]:
        """Of the units, in order."""

    def enter(self, index: int) -> None:
        """Get ready for unit `index`, whether it will be worked on or was before."""

    def work(self, index: int) -> BlockState:
        """Do it; returns what is saved."""

    def take(self, index: int, saved: BlockState, resumed: bool) -> BlockReport:
        """Go on from what was just worked out, or, if `resumed`, loaded from the earlier run."""


def walk(units: Units, number: int, state: RunState | None, progress: Progress) -> list[BlockReport]:
    """Walk through the units once, as pass `number` of the run; with no `state`, nothing is saved."""
    finished = set(state.finished(number)) if state is not None else set()
    ready: dict[int, BlockState] = {}
    reports = []
    works = _apart if units.independent else _together
    for index, name in enumerate(units.names):
        progress.block(index, name)
        units.enter(index)
        if state is not None and index in finished:
            report = units.take(index, state.load_block(number, index), True)
        else:
            if not ready:
                ready = works(units, [i for i in range(index, len(units.names)) if i not in finished])
            saved = ready.pop(index)
            if state is not None:
                state.save_block(number, index, *saved)
            report = units.take(index, saved, False)
        reports.append(report)
        progress.block_done(report)
    return reports


def _together(units: Units, left: Sequence[int]) -> dict[int, BlockState]:
    """The next unit, by all processes; all go on with what the first one has."""
    saved = units.work(left[0])
    return {left[0]: ranks.current().first(lambda: saved)}


def _apart(units: Units, left: Sequence[int]) -> dict[int, BlockState]:
    """The next units, one by each process."""
    together = ranks.current()
    next_ones = left[: together.size]
    mine = units.work(next_ones[together.rank]) if together.rank < len(next_ones) else None
    return {index: saved for index, saved in zip(next_ones, together.gather(mine), strict=False) if saved is not None}


def finished(units: Units, number: int, state: RunState | None) -> bool:
    """Whether nothing of the walk is left to work on."""
    return state is not None and len(state.finished(number)) == len(units.names)
