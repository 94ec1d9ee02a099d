"""What a run tells, for other programs: one JSON object a line."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from brecq.cli.parsing import typed
from brecq.cli.processes import is_first
from brecq.errors import ConfigError
from brecq.progress import Progress
from brecq.storage.sealed import finite
from brecq.version import __version__

if TYPE_CHECKING:
    from brecq.report import BlockReport, ScopeEntry


_open: JsonLog | None = None


@contextmanager
def logged(path: Path | None) -> Iterator[None]:
    """While this lasts, what the command tells is appended to the file, if there is one: first the command itself, at
    the end the error that ended it.

    Raises:
        ConfigError: the file cannot be written.
    """
    global _open
    if path is None or not is_first():
        yield
        return
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the log {str(path)!r}: {error.strerror}; name another file") from None
    with file:
        _open = JsonLog(file)
        log("command", command=typed(), version=__version__)
        try:
            yield
        except BaseException as error:
            log("error", kind=type(error).__name__, text=" ".join(str(error).split()))
            raise
        finally:
            _open = None


def log(event: str, **facts: Any) -> None:
    """Write an event into the log, where one is kept."""
    if _open is not None:
        _open.write(event, **facts)


def current() -> JsonLog | None:
    """The log that is kept, as a listener of what a run tells."""
    return _open


class JsonLog(Progress):
    """Writes an event into a file for each call of `Progress`: its name as `event`, seconds since the epoch as `time`,
    and what it was called with. JSON has neither NaN nor infinity: null stands for them."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def stage(self, text: str) -> None:
        self.write("stage", text=text)

    def note(self, text: str) -> None:
        self.write("note", text=text)

    def scope(self, entries: Sequence[ScopeEntry]) -> None:
        self.write("scope", operators=[dataclasses.asdict(entry) for entry in entries])

    def start(self, blocks: Sequence[str], steps: int, later: int = 0, loss: str = "soft") -> None:
        self.write("start", blocks=list(blocks), steps=steps, loss=loss)

    def block(self, index: int, name: str) -> None:
        self.write("block", index=index, name=name)

    def step(self, step: int, soft_loss: float, hard_loss: float | None) -> None:
        self.write("step", step=step, soft_loss=soft_loss, hard_loss=hard_loss)

    def block_done(self, report: BlockReport) -> None:
        self.write("block_done", **dataclasses.asdict(report))

    def write(self, event: str, **facts: Any) -> None:
        """An event and its facts, plain values."""
        values = finite({"event": event, "time": round(time.time(), 3), **facts})
        self._file.write(json.dumps(values, allow_nan=False) + "\n")
        self._file.flush()  # a reader sees it at once, and a killed run leaves it behind


class Both(Progress):
    """Tells two listeners."""

    def __init__(self, first: Progress, second: Progress) -> None:
        self._each = (first, second)

    def stage(self, text: str) -> None:
        for each in self._each:
            each.stage(text)

    def note(self, text: str) -> None:
        for each in self._each:
            each.note(text)

    def scope(self, entries: Sequence[ScopeEntry]) -> None:
        for each in self._each:
            each.scope(entries)

    def start(self, blocks: Sequence[str], steps: int, later: int = 0, loss: str = "soft") -> None:
        for each in self._each:
            each.start(blocks, steps, later, loss)

    def block(self, index: int, name: str) -> None:
        for each in self._each:
            each.block(index, name)

    def step(self, step: int, soft_loss: float, hard_loss: float | None) -> None:
        for each in self._each:
            each.step(step, soft_loss, hard_loss)

    def block_done(self, report: BlockReport) -> None:
        for each in self._each:
            each.block_done(report)

    def close(self) -> None:
        for each in self._each:
            each.close()
