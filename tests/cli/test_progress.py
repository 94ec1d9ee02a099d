"""Progress: what is told, where, and how often."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import brecq
from brecq.cli import progress as module
from brecq.cli.events import Both, JsonLog, log, logged
from brecq.cli.progress import Clock, LiveProgress, PlainProgress, describe_block, make_progress, sparkline
from brecq.errors import ConfigError
from brecq.progress import Progress
from brecq.report import BlockReport, ScopeEntry
from brecq.units import format_seconds

HIDE, SHOW, ERASE = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"
"""Terminal codes: hide and show the cursor, erase the line."""


class Time:
    """A clock that tests turn by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(module, "time", time)
    return time


def console(*, terminal: bool, width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def text_of(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def finished(name: str) -> BlockReport:
    return BlockReport(name=name, layers=("conv",), steps=100, error_before=0.5, error_after=0.0125, seconds=12.0)


ENTRY = ScopeEntry(
    op="conv2d", layer="stem", block="stem", kind="conv2d", weights="8 bit symmetric per channel",
    inputs="8 bit asymmetric per tensor", output="float", reason="first layer",
)  # fmt: skip


def drive(progress: Progress, clock: Time) -> None:
    """A run of two blocks of 100 steps: 30 s for the first, half of the second in 10 s."""
    progress.stage("capturing the network")
    progress.scope([ENTRY])
    progress.start(["stem", "layer1.0"], 100)
    progress.block(0, "stem")
    progress.step(50, 0.75, 0.5)
    clock.now += 30
    progress.block_done(finished("stem"))
    progress.block(1, "layer1.0")
    clock.now += 10
    progress.step(50, 0.125, None)
    progress.block_done(finished("layer1.0"))
    progress.close()
    progress.close()


def test_a_sensitivity_measurement_shows_its_least_and_greatest_error() -> None:
    report = BlockReport("layer1.0", ("conv",), 0, 0.5, 1e-4, 12.0, "sensitivity")
    assert describe_block(report) == "errors 0.0001 to 0.5  12 s"
    assert describe_block(dataclasses.replace(report, resumed=True)) == "errors 0.0001 to 0.5  from the earlier run"


def test_plain_lines_tell_each_stage_and_each_finished_block(clock: Time) -> None:
    target = console(terminal=False)
    drive(PlainProgress(target), clock)
    lines = [line.rstrip() for line in text_of(target).splitlines()]
    assert lines[0] == "capturing the network"
    assert lines[-2] == "[1/2] stem  error 0.5 → 0.0125  100 steps  12 s  30 s left"
    assert lines[-1] == "[2/2] layer1.0  error 0.5 → 0.0125  100 steps  12 s"
    assert "\x1b" not in text_of(target)


def test_the_scope_is_shown(clock: Time) -> None:
    target = console(terminal=False)
    PlainProgress(target).scope([ENTRY])
    words = " ".join(text_of(target).split())
    assert "Quantization scope" in words
    assert "stem" in words
    assert "first layer" in words


def test_a_log_line_is_never_broken(clock: Time) -> None:
    target = console(terminal=False, width=20)
    progress = PlainProgress(target)
    progress.start(["a.very.long.name.of.a.block"], 100)
    progress.block(0, "a.very.long.name.of.a.block")
    progress.block_done(finished("a.very.long.name.of.a.block"))
    assert text_of(target).count("\n") == 2


def test_the_live_line_tells_block_step_losses_and_time_left(clock: Time) -> None:
    target = console(terminal=True)
    progress = LiveProgress(target)
    drive(progress, clock)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text_of(target))
    # half of the second block is left: 50 steps at 40 s per 150
    assert "[2/2] layer1.0  step 50/100  13 s left  soft 0.125" in plain
    assert "[1/2] stem  error 0.5 → 0.0125  100 steps  12 s  30 s left" in plain


def test_the_hard_loss_stays_until_the_next_block(clock: Time) -> None:
    target = console(terminal=True)
    progress = LiveProgress(target)
    progress.start(["a", "b"], 100)
    for index, name in enumerate("ab"):
        progress.block(index, name)
        clock.now += 1
        progress.step(10, 0.5, 0.375 if name == "a" else None)
        clock.now += 1
        progress.step(20, 0.25, None)
    progress.close()
    assert "a  step 20/100  18 s left  soft 0.25  hard 0.375" in text_of(target)
    assert "hard" not in text_of(target).split("b  step")[-1]


def test_the_live_line_is_not_redrawn_at_every_step(clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = LiveProgress(console(terminal=True))
    drawn: list[str] = []
    draw = progress._draw
    monkeypatch.setattr(progress, "_draw", lambda line: (drawn.append(line.plain), draw(line)))
    progress.start(["stem"], 10_000)
    progress.block(0, "stem")
    drawn.clear()
    for step in range(1, 10_001):
        clock.now += 1e-4  # a second in all
        progress.step(step, 1.0, None)
    assert 4 <= len(drawn) <= 7
    assert "step 10000/10000" in drawn[-1]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "error 0.5 → 0.0125  100 steps  12 s"),
        ({"resumed": True}, "error 0.5 → 0.0125  from the earlier run"),
        ({"stage": "activations"}, "activations  error 0.5 → 0.0125  100 steps  12 s"),
        ({"stage": "rtn", "steps": 0}, "error 0.0125  12 s"),
    ],
)
def test_a_finished_block(changes: dict, text: str) -> None:
    assert describe_block(dataclasses.replace(finished("stem"), **changes)) == text


def test_after_closing_the_cursor_is_back_and_the_line_gone(clock: Time) -> None:
    target = console(terminal=True)
    progress = LiveProgress(target)
    progress.stage("capturing the network")
    assert text_of(target).count(HIDE) == 1
    assert text_of(target).count(SHOW) == 0
    progress.close()
    assert text_of(target).count(SHOW) == 1
    assert text_of(target).rindex(ERASE) > text_of(target).rindex("capturing")


def test_the_silent_progress_accepts_everything(clock: Time, capsys: pytest.CaptureFixture[str]) -> None:
    drive(Progress(), clock)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("terminal", "kind"), [(True, LiveProgress), (False, PlainProgress)])
def test_the_console_decides(terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert type(make_progress(console(terminal=terminal))) is kind


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_progress(console(terminal=True))) is PlainProgress


@given(
    blocks=st.integers(1, 50),
    steps=st.integers(1, 1000),
    resumed=st.integers(0, 49),
    done=st.integers(0, 49),
    share=st.floats(0, 1),
    rate=st.floats(1e-3, 1e3),
    later=st.integers(0, 1000),
)
def test_at_a_constant_rate_the_estimate_is_exact(
    blocks: int, steps: int, resumed: int, done: int, share: float, rate: float, later: int
) -> None:
    resumed = min(resumed, blocks - 1)
    done = min(done, blocks - 1 - resumed)
    clock = Clock(blocks, steps, now=0.0, later=later)
    now = 0.0
    for _ in range(resumed):
        now += 0.5
        clock.finish(True, now)
    for _ in range(done):
        now += steps * rate
        clock.finish(False, now)
    step = round(share * steps)
    left = clock.left(step, now + step * rate)
    if done == 0 and step == 0:
        assert left is None
    else:
        assert left == pytest.approx(((blocks - resumed - done) * steps - step + later) * rate, abs=1e-6)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"), (7620, "2 h 07 min"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_events_are_one_json_object_a_line(tmp_path: Path) -> None:
    with logged(tmp_path / "log.jsonl"):
        progress = make_progress(Console(file=io.StringIO()))
        progress.stage("capturing")
        progress.start(["stem"], 20)
        progress.block(0, "stem")
        progress.step(10, 0.5, None)
        progress.step(20, math.nan, math.inf)
        progress.block_done(BlockReport("stem", ("conv",), 20, 0.5, 0.1, 1.0))
        progress.close()
        log("result", rows=[{"metrics": {"SQNR dB": math.inf}}])
    log("late")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    events = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    told = ["command", "stage", "start", "block", "step", "step", "block_done", "result"]
    assert [event["event"] for event in events] == told
    assert events[0]["version"] == brecq.__version__
    assert events[2]["blocks"] == ["stem"]
    assert events[4]["hard_loss"] is None
    assert (events[5]["soft_loss"], events[5]["hard_loss"]) == (None, None)
    assert events[6]["error_after"] == 0.1
    assert events[7]["rows"] == [{"metrics": {"SQNR dB": None}}]
    assert all(event["time"] > 1e9 for event in events)


def test_a_log_tells_everything_that_a_progress_is_told() -> None:
    told = {name for name in vars(Progress) if not name.startswith("_")}
    assert told <= vars(Both).keys()
    assert told - {"close"} <= vars(JsonLog).keys()  # the file is closed by the command


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    nowhere = logged(tmp_path / "nowhere" / "log.jsonl")
    with pytest.raises(ConfigError, match=r"cannot write the log .*nowhere"), nowhere:
        pass


def test_a_log_ends_with_what_ended_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), logged(tmp_path / "log.jsonl"):
        raise ConfigError("no\nroom")
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["kind"], last["text"]) == ("error", "ConfigError", "no room")


def test_a_sparkline_is_logarithmic() -> None:
    assert sparkline([1, 10, 100, 10]) == "▁▅█▅"
    assert sparkline([2.0, 2.0, 2.0]) == "▁▁▁"
    assert sparkline([10.0**-n for n in range(64)], 8) == "█▇▆▅▄▃▂▁"


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 0.0], [1.0, float("nan")]])
def test_what_has_no_course_has_no_sparkline(values: list[float]) -> None:
    assert sparkline(values) == ""


@given(st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=100), st.integers(2, 20))
def test_a_sparkline_fits(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(len(values), width)


def test_narrow_terminals_have_no_room_for_a_sparkline(clock: Time) -> None:
    for width, there in ((80, False), (120, True)):
        target = console(terminal=True, width=width)
        progress = LiveProgress(target)
        progress.start(["stem"], 100)
        progress.block(0, "stem")
        for step, loss in enumerate((1.0, 0.1, 0.01), 1):
            clock.now += 1
            progress.step(step, loss, None)
        progress.close()
        assert ("█▅▁" in text_of(target)) is there
