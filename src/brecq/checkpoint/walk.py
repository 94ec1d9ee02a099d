"""A resumable walk: units of work in order, each saved when it is finished, or taken over from an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from brecq.checkpoint.resume import BlockState, RunState
from brecq.progress import Progress
from brecq.report import BlockReport


class Units(Protocol):
    """What a walk works on."""

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
    reports = []
    for index, name in enumerate(units.names):
        progress.block(index, name)
        units.enter(index)
        if state is not None and index in finished:
            report = units.take(index, state.load_block(number, index), True)
        else:
            saved = units.work(index)
            if state is not None:
                state.save_block(number, index, *saved)
            report = units.take(index, saved, False)
        reports.append(report)
        progress.block_done(report)
    return reports


def finished(units: Units, number: int, state: RunState | None) -> bool:
    """Whether nothing of the walk is left to work on."""
    return state is not None and len(state.finished(number)) == len(units.names)
