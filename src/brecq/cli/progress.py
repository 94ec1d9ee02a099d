"""How far a run is, for people: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.live import Live
from rich.text import Text

from brecq.cli.events import Both, current
from brecq.cli.processes import is_first
from brecq.cli.render import scope_table
from brecq.progress import Progress
from brecq.units import format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from brecq.report import BlockReport, ScopeEntry

BARS = "▁▂▃▄▅▆▇█"
SPARKLINE, WIDE = 16, 90
"""Characters of a sparkline, and the columns from which there is room for one."""

UNITS = {
    "soft": "errors are of a block's output: squared error ÷ mean square of the float output",
    "loss": "errors are of a batch's statistics: squared distance from those that batch norms stored, in deviations",
}
"""What errors are, by what steps tell of the loss."""

REFRESH_SECONDS = 0.2
"""A live line is redrawn at most this often: drawing must not slow the run."""


class Clock:
    """Estimates the time left from the steps that were really made (resumed blocks cost none).

    `now` is in seconds, from any fixed origin; `later` is what follows these blocks, in steps.
    """

    def __init__(self, blocks: int, steps: int, now: float, later: int = 0) -> None:
        self.blocks, self.steps, self.later = blocks, max(steps, 1), later
        self._since = now
        self._finished = 0
        self._resumed = 0

    def finish(self, resumed: bool, now: float) -> None:
        """One more block is done."""
        self._finished += 1
        if resumed:
            self._resumed += 1
            if self._finished == self._resumed:  # the time spent on skipping is no work
                self._since = now

    def left(self, step: int, now: float) -> float | None:
        """Seconds left when `step` steps of the current block are done, or `None` before the first step."""
        worked = (self._finished - self._resumed) * self.steps + step
        if worked <= 0:
            return None
        total = (self.blocks - self._finished) * self.steps - step + self.later
        return max(total, 0) * (now - self._since) / worked


def describe_block(report: BlockReport) -> str:
    """`error 0.12 → 0.013  400 steps  12 s`; stages of two are named, rounding to nearest has one error,
    a sensitivity measurement the least and the greatest."""
    if report.stage == "rtn":
        return f"error {report.error_after:.3g}  {format_seconds(report.seconds)}"
    if report.stage == "sensitivity":
        effort = "from the earlier run" if report.resumed else format_seconds(report.seconds)
        return f"errors {report.error_after:.2g} to {report.error_before:.2g}  {effort}"
    stage = "" if report.stage == "joint" else f"{report.stage}  "
    undone = ", no gain: undone" if report.stage == "tuning" and not report.gained else ""
    effort = "from the earlier run" if report.resumed else f"{report.steps} steps  {format_seconds(report.seconds)}"
    return f"{stage}error {report.error_before:.3g} → {report.error_after:.3g}{undone}  {effort}"


def sparkline(values: Sequence[float], width: int = SPARKLINE) -> str:
    """Positive values as bars, on a logarithmic scale from the least to the greatest; means where they are many."""
    count = min(len(values), width)
    edges = [round(part * len(values) / max(count, 1)) for part in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    logs = [math.log(value) for value in means if value > 0 and math.isfinite(value)]
    if len(logs) < max(count, 2):
        return ""
    low, span = min(logs), max(logs) - min(logs)
    return "".join(BARS[0 if span == 0 else round((value - low) / span * (len(BARS) - 1))] for value in logs)


class ConsoleProgress(Progress):
    """What the live and the plain progress share: finished blocks as lines, and the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._clock = Clock(0, 0, 0.0)
        self._index = 0
        self._name = ""
        self._loss = ""

    def note(self, text: str) -> None:
        self._print(Text(text))

    def scope(self, entries: Sequence[ScopeEntry]) -> None:
        self.console.print(scope_table(entries))

    def start(self, blocks: Sequence[str], steps: int, later: int = 0, loss: str = "soft") -> None:
        if not self._loss:
            self._print(Text(UNITS[loss]))
        self._loss = loss
        self._clock = Clock(len(blocks), steps, time.monotonic(), later)

    def block(self, index: int, name: str) -> None:
        self._index, self._name = index, name

    def block_done(self, report: BlockReport) -> None:
        now = time.monotonic()
        self._clock.finish(report.resumed, now)
        line = Text(f"{self._counter()} {report.name}", style="bold")
        line.append(f"  {describe_block(report)}{'' if report.resumed else self._left(0, now)}", style="not bold")
        self._print(line)

    def _counter(self) -> str:
        width = len(str(self._clock.blocks))
        return f"[{self._index + 1:>{width}}/{self._clock.blocks}]"

    def _left(self, step: int, now: float) -> str:
        left = self._clock.left(step, now)
        return f"  {format_seconds(left)} left" if left else ""

    def _print(self, line: Text) -> None:
        # soft_wrap: a log line stays one line, however narrow the console is taken to be
        self.console.print(line, soft_wrap=True, highlight=False)


class PlainProgress(ConsoleProgress):
    """One plain line per stage and finished block, for logs and pipes."""

    def stage(self, text: str) -> None:
        self._print(Text(text))


class LiveProgress(ConsoleProgress):
    """A live line at the bottom of the terminal: block, step, soft and hard loss, their course, time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Live | None = None
        self._drawn = 0.0
        self._hard: float | None = None
        self._losses: list[float] = []

    def stage(self, text: str) -> None:
        self._draw(Text(f"{text} …", style="cyan"))

    def block(self, index: int, name: str) -> None:
        super().block(index, name)
        self._hard, self._losses = None, []
        self._draw(Text(f"{self._counter()} {name} …", style="cyan"))

    def step(self, step: int, soft_loss: float, hard_loss: float | None) -> None:
        if hard_loss is not None:
            self._hard = hard_loss
        self._losses.append(soft_loss)
        now = time.monotonic()
        if now - self._drawn < REFRESH_SECONDS and step < self._clock.steps:
            return
        line = Text(f"{self._counter()} {self._name}", style="cyan bold")
        left = self._left(step, now)  # before what a narrow terminal cuts off
        line.append(f"  step {step}/{self._clock.steps}{left}  {self._loss} {soft_loss:.3g}", style="not bold")
        if self._hard is not None:
            line.append(f"  hard {self._hard:.3g}", style="not bold")
        if self.console.width >= WIDE:
            line.append(f"  {sparkline(self._losses)}", style="not bold")
        self._draw(line)

    def close(self) -> None:
        if self._live is not None:
            self._live.update(Text(""), refresh=False)
            self._live.stop()
            self._live = None

    def _draw(self, line: Text) -> None:
        self._drawn = time.monotonic()
        line.no_wrap, line.overflow = True, "ellipsis"
        if self._live is None:
            self._live = Live(line, console=self.console, auto_refresh=False, transient=True)
            self._live.start(refresh=True)
        else:
            self._live.update(line, refresh=True)


def make_progress(console: Console) -> Progress:
    """The live progress where `console` is a terminal, otherwise the plain one; beside it the log that is kept."""
    if not is_first():
        return Progress()
    live = console.is_terminal and not console.is_dumb_terminal
    shown = LiveProgress(console) if live else PlainProgress(console)
    log = current()
    return shown if log is None else Both(shown, log)
