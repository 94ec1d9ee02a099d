"""Walks: what is finished is taken over, the rest is worked on, and both are gone on from in order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from brecq.checkpoint.resume import BlockState, RunState
from brecq.checkpoint.walk import finished, walk
from brecq.progress import Progress
from brecq.report import BlockReport


class Squares:
    """Three units; `breaks`: the one that never ends."""

    independent = False
    names = ("one", "two", "three")

    def __init__(self, breaks: int | None = None) -> None:
        self.breaks, self.calls, self.values = breaks, [], []

    def enter(self, index: int) -> None:
        self.calls.append(("enter", index))

    def work(self, index: int) -> BlockState:
        if index == self.breaks:
            raise KeyboardInterrupt
        self.calls.append(("work", index))
        report = {"name": self.names[index], "layers": ["layer"], "steps": index, "error_before": 1.0,
                  "error_after": 0.5, "seconds": 2.0}  # fmt: skip
        return BlockState(self.names[index], {"value": torch.tensor(index**2)}, report)

    def take(self, index: int, saved: BlockState, resumed: bool) -> BlockReport:
        self.calls.append(("take", index, resumed))
        self.values.append(saved.state["value"].item())
        return BlockReport.from_dict(saved.report, resumed=resumed)


class Told(Progress):
    def __init__(self) -> None:
        self.calls: list[object] = []

    def block(self, index: int, name: str) -> None:
        self.calls.append((index, name))

    def block_done(self, report: BlockReport) -> None:
        self.calls.append(report)


def test_units_follow_each_other_and_progress_is_told() -> None:
    units, progress = Squares(), Told()
    reports = walk(units, 0, None, progress)
    assert units.calls == [call for i in range(3) for call in (("enter", i), ("work", i), ("take", i, False))]
    assert units.values == [0, 1, 4]
    assert [report.layers for report in reports] == [("layer",)] * 3
    told = [call for i, name in enumerate(units.names) for call in ((i, name), reports[i])]
    assert progress.calls == told
    assert not finished(units, 0, None)


@pytest.mark.parametrize("breaks", [0, 1, 2])
def test_a_broken_walk_goes_on_where_it_was(tmp_path: Path, breaks: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        walk(Squares(breaks), 3, RunState(tmp_path, "a:1"), Progress())
    units, state = Squares(), RunState(tmp_path, "a:1", resume=True)
    assert not finished(units, 3, state)
    reports = walk(units, 3, state, Progress())
    assert units.values == [0, 1, 4]
    assert [report.resumed for report in reports] == [i < breaks for i in range(3)]
    assert [call for call in units.calls if call[0] == "work"] == [("work", i) for i in range(breaks, 3)]
    assert finished(units, 3, state)
    assert not finished(units, 2, state)
