from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from rich.console import Console

from brecq.checkpoint.resume import RunState
from brecq.cli.options import Output
from brecq.cli.output import Terminated, ending_like_interrupted, output_folder
from brecq.errors import ConfigError
from brecq.storage.lock import LOCK


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out"


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=200)


def use(
    folder: Path, console: Console | None = None, *, resume: bool = False, force: bool = False
) -> AbstractContextManager[None]:
    output = Output(output=folder, resume=resume, force=force)
    return output_folder(
        output, console or Console(), look="look at it", states=("", "distilled"),
        finished=lambda: (folder / "manifest.json").exists() and not (folder / "blocks").exists(),
    )  # fmt: skip


def test_the_folder_is_there_and_held_while_it_is_used(out: Path) -> None:
    with use(out):
        assert (out / LOCK).read_text() == str(os.getpid())
        (out / "report.json").write_text("{}")
    assert [file.name for file in out.iterdir()] == ["report.json"]


def test_nothing_is_left_where_nothing_was_written(out: Path) -> None:
    with use(out):
        pass
    assert not out.exists()
    with pytest.raises(ConfigError, match="keep one"), use(out, resume=True, force=True):
        pass
    assert not out.exists()


def test_a_folder_in_use_needs_resume_or_force(out: Path) -> None:
    out.mkdir(parents=True)
    (out / LOCK).write_text("1")  # left by a process that was killed: it holds nothing
    with use(out):
        (out / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match="is not empty; start anew there with --force"), use(out):
        pass
    with use(out, force=True):
        pass
    assert (out / "notes.txt").exists()


@pytest.mark.parametrize("where", ["", "distilled"])
def test_only_an_unfinished_run_can_be_resumed(out: Path, where: str) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"), use(out, resume=True):
        pass
    run = RunState(out / where, "f")
    with pytest.raises(ConfigError, match=r"holds an unfinished run; continue it with --resume.*--force"), use(out):
        pass
    with use(out, resume=True):
        pass
    run.clear()
    (out / "manifest.json").write_text("{}")
    for resume in (False, True):
        with pytest.raises(ConfigError) as refused, use(out, resume=resume):
            pass
        assert "is finished; look at it, start anew with --force, or name another folder" in str(refused.value)
        assert "--resume" not in str(refused.value)


def test_a_file_in_the_way(out: Path) -> None:
    out.parent.mkdir()
    out.write_text("")
    for folder in (out, out / "inside"):
        with pytest.raises(ConfigError, match="cannot write"), use(folder):
            pass


def test_what_an_interrupted_run_says(out: Path, console: Console) -> None:
    for before, hint in ((False, "nothing was saved yet: repeat the command"), (True, "with --resume continues in")):
        if before:
            RunState(out, "f")
        with pytest.raises(KeyboardInterrupt), use(out, console, resume=before):
            raise KeyboardInterrupt
        assert hint in console.export_text()


def test_a_termination_is_an_interruption() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), ending_like_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert issubclass(Terminated, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGTERM) is before
