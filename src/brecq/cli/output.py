"""The folder that a command writes to: held by one process, never somebody else's, and what --resume finds in it."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from brecq.cli.options import Output
from brecq.cli.processes import is_first
from brecq.errors import ConfigError
from brecq.storage.lock import LOCK, locked


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM: it ends as at Ctrl-C, with the status of the signal."""


@contextmanager
def ending_like_interrupted() -> Iterator[None]:
    """Turn SIGTERM into `Terminated`, so that terminals are restored and runs say how to continue."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    # the main thread alone receives signals; a process that waits for another in a collective never would
    if threading.current_thread() is not threading.main_thread() or not is_first():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def output_folder(
    output: Output,
    console: Console,
    *,
    finished: Callable[[], bool],
    look: str,
    states: Sequence[str] = ("",),
) -> Iterator[None]:
    """Create the folder and keep other processes out of it; where the block is interrupted, say how to continue.

    Args:
        finished: whether it holds a result and nothing to resume; `look` then says how to see it.
        states: the subfolders whose runs `resume` continues.

    Raises:
        ConfigError: the folder is in use, must not be written to, or holds nothing to resume.
    """
    folder = output.output
    if not is_first():
        yield
        return
    with locked(folder, ConfigError):
        check_output(output, finished=finished(), look=look, states=states)
        try:
            yield
        except KeyboardInterrupt:
            if finished():
                hint = f"{folder} is finished"
            elif _has_run(folder, states):
                hint = f"the same command with --resume continues in {folder}"
            else:
                hint = "nothing was saved yet: repeat the command"
            console.print(f"interrupted; {hint}", soft_wrap=True, highlight=False)
            raise


def check_output(output: Output, *, finished: bool, look: str, states: Sequence[str]) -> None:
    """Raise `ConfigError` where the folder must not be written to; create it."""
    folder, resume, force = output.output, output.resume, output.force
    if resume and force:
        raise ConfigError("--resume continues the run in the output folder, --force overwrites it; keep one")
    if finished and not force:
        raise ConfigError(
            f"the run in {str(folder)!r} is finished; {look}, start anew with --force, or name another folder"
        )
    unfinished = _has_run(folder, states)
    if os.path.isdir(folder) and any(file.name != LOCK for file in folder.iterdir()) and not (resume or force):
        what = "holds an unfinished run; continue it with --resume" if unfinished else "is not empty"
        raise ConfigError(
            f"the output folder {str(folder)!r} {what}; start anew there with --force, which replaces only brecq's "
            "own files, or name another folder"
        )
    if resume and not unfinished:
        raise ConfigError(f"there is nothing to resume in {str(folder)!r}; start without --resume")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write to the output folder {str(folder)!r}: {error.strerror}; name another with -o"
        ) from None


def _has_run(folder: Path, states: Sequence[str]) -> bool:
    return any(os.path.isfile(folder / state / "blocks" / "run.json") for state in states)
