"""A process that forks runs, which tests may kill."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "src"
ONCE = {"timing.json", "distilled.json"}  # which hold times


class Worker:
    """`tests/robustness/worker.py`, running."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
        script = str(Path(__file__).with_name("worker.py"))
        self._process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run(
        self, task: str, folder: Path, *, limit: int | None = None, number: signal.Signals | None = None,
        after: float = 0.0, until: str | None = None, nth: int = 1,
    ) -> int:  # fmt: skip
        """The exit status of a task; with `number`, which is sent `after` seconds, or when the `nth` file that matches
        `until` is there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        when = {"signal": number, "after": after, "until": until, "nth": nth}
        request = {"task": task, "folder": str(folder), "limit": limit, **when}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    return digests_of


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, but for those that hold times; of sensitivities without times."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name in ONCE:
            continue
        content = file.read_bytes()
        if file.name == "sensitivity.json":
            table = json.loads(content)
            content = json.dumps([table[key] for key in ("layers", "knobs", "terms", "other_bytes")]).encode()
        found[str(file.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


@pytest.fixture(scope="session")
def undisturbed(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, float]]:
    """The folder of a task that ran to its end, and the seconds that took."""
    done: dict[str, tuple[Path, float]] = {}

    def get(task: str) -> tuple[Path, float]:
        if task not in done:
            folder = tmp_path_factory.mktemp(task) / "undisturbed"
            began = time.monotonic()
            assert worker.run(task, folder) == 0
            done[task] = folder, time.monotonic() - began
        return done[task]

    return get
