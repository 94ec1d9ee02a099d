"""What a run tells, for other programs: one JSON object a line."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brecq.errors import ConfigError
from brecq.progress import Progress

if TYPE_CHECKING:
    from brecq.report import BlockReport, ScopeEntry


class JsonLog(Progress):
    """Appends an event to a file for each call of `Progress`: its name as `event`, seconds since the epoch as `time`,
    and what it was called with.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write the log {str(path)!r}: {error.strerror}; name another file") from None

    def stage(self, text: str) -> None:
        self._write("stage", text=text)

    def note(self, text: str) -> None:
        self._write("note", text=text)

    def scope(self, entries: Sequence[ScopeEntry]) -> None:
        self._write("scope", operators=[dataclasses.asdict(entry) for entry in entries])

    def start(self, blocks: Sequence[str], steps: int, later: int = 0, loss: str = "soft") -> None:
        self._write("start", blocks=list(blocks), steps=steps, loss=loss)

    def block(self, index: int, name: str) -> None:
        self._write("block", index=index, name=name)

    def step(self, step: int, soft_loss: float, hard_loss: float | None) -> None:
        self._write("step", step=step, soft_loss=soft_loss, hard_loss=hard_loss)

    def block_done(self, report: BlockReport) -> None:
        self._write("block_done", **dataclasses.asdict(report))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: str, **facts: Any) -> None:
        self._file.write(json.dumps({"event": event, "time": round(time.time(), 3), **facts}) + "\n")
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
