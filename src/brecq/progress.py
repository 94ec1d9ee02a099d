"""How far a run is: a live line on a terminal, plain lines in a log, nothing by default."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from brecq.report import BlockReport, ScopeEntry

REFRESH_SECONDS = 0.2
"""A live line is redrawn at most this often: drawing must not slow the run."""


class Progress:
    """What a run tells while it works; every method does nothing, so this class is the silent progress.

    A run calls `stage` whenever it turns to something else, `scope` once it knows what it will quantize, then
    `start`, for each block `block`, `step` now and then, `block_done`, and `close` at the end. A second pass over
    the blocks calls `start` again.
    """

    def stage(self, text: str) -> None:
        """The run turned to `text`, such as "capturing the network"."""

    def scope(self, entries: Sequence[ScopeEntry]) -> None:
        """It is settled what will be quantized, and how."""

    def start(self, blocks: Sequence[str], steps: int, later: int = 0) -> None:
        """The blocks named `blocks` follow, `steps` gradient steps each; passes after this one cost about as much as
        `later` such steps."""

    def block(self, index: int, name: str) -> None:
        """Work on the block at `index` (from 0) begins."""

    def step(self, step: int, soft_loss: float, hard_loss: float | None) -> None:
        """`step` steps of the block are done; losses with soft and, where known, hard rounding."""

    def block_done(self, report: BlockReport) -> None:
        """The block is finished, or was taken over from an earlier run (`report.resumed`)."""

    def close(self) -> None:
        """Nothing follows; calling it twice is fine."""


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


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def describe_block(report: BlockReport) -> str:
    """`error 0.12 → 0.013  400 steps  12 s`; stages of two are named, rounding to nearest has one error."""
    if report.stage == "rtn":
        return f"error {report.error_after:.3g}  {format_seconds(report.seconds)}"
    stage = "" if report.stage == "joint" else f"{report.stage}  "
    effort = "from the earlier run" if report.resumed else f"{report.steps} steps  {format_seconds(report.seconds)}"
    return f"{stage}error {report.error_before:.3g} → {report.error_after:.3g}  {effort}"


class ConsoleProgress(Progress):
    """What the live and the plain progress share: finished blocks as lines, and the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._clock = Clock(0, 0, 0.0)
        self._index = 0
        self._name = ""

    def scope(self, entries: Sequence[ScopeEntry]) -> None:
        from brecq.cli.render import scope_table

        self.console.print(scope_table(entries))

    def start(self, blocks: Sequence[str], steps: int, later: int = 0) -> None:
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
    """A live line at the bottom of the terminal: block, step, soft and hard loss, time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Live | None = None
        self._drawn = 0.0
        self._hard: float | None = None

    def stage(self, text: str) -> None:
        self._draw(Text(f"{text} …", style="cyan"))

    def block(self, index: int, name: str) -> None:
        super().block(index, name)
        self._hard = None
        self._draw(Text(f"{self._counter()} {name} …", style="cyan"))

    def step(self, step: int, soft_loss: float, hard_loss: float | None) -> None:
        if hard_loss is not None:
            self._hard = hard_loss
        now = time.monotonic()
        if now - self._drawn < REFRESH_SECONDS and step < self._clock.steps:
            return
        line = Text(f"{self._counter()} {self._name}", style="cyan bold")
        line.append(f"  step {step}/{self._clock.steps}  soft {soft_loss:.3g}", style="not bold")
        if self._hard is not None:
            line.append(f"  hard {self._hard:.3g}", style="not bold")
        line.append(self._left(step, now), style="not bold")
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
    """The live progress where `console` is a terminal, otherwise the plain one."""
    return LiveProgress(console) if console.is_terminal and not console.is_dumb_terminal else PlainProgress(console)
