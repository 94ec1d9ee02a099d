"""A disk without room: one line that says what is needed and what is free, nothing half-written, and the run goes on
once there is room. On a small tmpfs where one may be mounted, and with a limited file size everywhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Undisturbed = Callable[[str], tuple[Path, float]]
Digests = Callable[[Path], dict[str, str]]

WHY = r"the disk is full|a file may not be that large here \(ulimit -f\)"
LINE = rf"cannot write \S+: ({WHY}): \d+ bytes are needed, \d+ bytes are free"
SLOW = pytest.mark.slow
LIMITS = [
    ("quantize_on_disk", 3000), ("export", 3000), ("distill", 5000), pytest.param("quantize", 2000, marks=SLOW),
]  # fmt: skip


def check_refusal(folder: Path) -> None:
    message = folder.with_suffix(".error").read_text()
    assert re.search(LINE, message), message
    assert "\n" not in message
    assert not list(folder.rglob(".tmp*"))


@pytest.mark.parametrize(("task", "limit"), LIMITS)
def test_files_may_not_be_that_large(
    worker: Any, undisturbed: Undisturbed, digests: Digests, tmp_path: Path, task: str, limit: int
) -> None:
    folder = tmp_path / "run"
    assert worker.run(task, folder, limit=limit) == 2
    check_refusal(folder)
    assert worker.run(task, folder) == 0
    assert digests(folder) == digests(undisturbed(task)[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    "task", ["quantize_on_disk", pytest.param("quantize", marks=SLOW), pytest.param("search", marks=SLOW)]
)
def test_the_disk_is_full(
    worker: Any, undisturbed: Undisturbed, digests: Digests, small_disk: Path, task: str
) -> None:
    (small_disk / "filler").write_bytes(bytes(52 * 1024 if task == "quantize_on_disk" else 60 * 1024))
    folder = small_disk / "run"
    status = worker.run(task, folder)
    message = folder.with_suffix(".error")
    assert status == 2, status
    if message.read_text():  # the disk may have had no room for it either
        check_refusal(folder)
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert worker.run(task, folder) == 0
    assert digests(folder) == digests(undisturbed(task)[0])
