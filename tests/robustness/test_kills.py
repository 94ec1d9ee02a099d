"""Runs that are killed at random moments, and resumed: they end bit-equal to a run that was left alone."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TASKS = ("quantize", "search", "distill", "export", "quantize_parts", "command_learned")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FEW = (0, 7, 14, 5)  # several tasks, and every signal
ENDED = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15, -6), signal.SIGINT: (130, -2, -6)}
"""Exit statuses. -6: the exception that a signal raises came in a Python function that PyTorch's C++ calls and cannot
be thrown through, which aborts the process, once in hundreds of runs."""

Undisturbed = Callable[[str], tuple[Path, float]]
Digests = Callable[[Path], dict[str, str]]


def kill_and_resume(worker: Any, undisturbed: Undisturbed, digests: Digests, folder: Path, seed: int) -> None:
    """Kill a run up to three times, each at a random moment, and let it end."""
    chance = random.Random(seed)
    task, number = TASKS[seed % len(TASKS)], SIGNALS[seed // len(TASKS) % len(SIGNALS)]
    expected, seconds = undisturbed(task)
    for _ in range(chance.randint(1, 3)):
        status = worker.run(task, folder, number=number, after=chance.uniform(0, seconds))
        assert status in (0, *ENDED[number])  # it had ended already, or it was killed
    assert worker.run(task, folder) == 0
    found = {name: digest for name, digest in digests(folder).items() if not Path(name).name.startswith(".")}
    assert found == digests(expected)


@pytest.mark.parametrize("seed", FEW)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    worker: Any, undisturbed: Undisturbed, digests: Digests, tmp_path: Path, seed: int
) -> None:
    kill_and_resume(worker, undisturbed, digests, tmp_path / "run", seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", sorted({*range(200)} - {*FEW}))
def test_many_killed_runs(worker: Any, undisturbed: Undisturbed, digests: Digests, tmp_path: Path, seed: int) -> None:
    kill_and_resume(worker, undisturbed, digests, tmp_path / "run", seed)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_run_writes_the_same_bytes(
    worker: Any, undisturbed: Undisturbed, digests: Digests, tmp_path: Path, task: str
) -> None:
    assert worker.run(task, tmp_path / "again") == 0
    assert digests(tmp_path / "again") == digests(undisturbed(task)[0])


@pytest.mark.parametrize(
    ("task", "file", "nth", "number"),
    [
        ("command_learned", "manifest.json", 1, signal.SIGTERM),  # the result is saved, and nothing measured
        # what was measured is half saved: the manifest is of the files before
        ("command_learned", "report.json", 2, signal.SIGKILL),
        ("command_learned", "record.json", 1, signal.SIGINT),  # there is no page
        ("command_nearest", "manifest.json", 2, signal.SIGTERM),
    ],
)
def test_a_run_killed_behind_its_result_is_measured_and_gets_its_page(
    worker: Any,
    undisturbed: Undisturbed,
    digests: Digests,
    tmp_path: Path,
    task: str,
    file: str,
    nth: int,
    number: signal.Signals,
) -> None:
    folder, (expected, _) = tmp_path / "run", undisturbed(task)
    said = folder.with_suffix(".out")
    assert worker.run(task, folder, number=number, until=file, nth=nth) in ENDED[number]
    assert (f"{folder}; its evaluation and its report are not complete" in said.read_text()) == (
        number != signal.SIGKILL and (file, nth) != ("manifest.json", 1)
    )
    if number != signal.SIGKILL:
        assert f"interrupted; the same command with --resume continues in {folder}" in said.read_text()
    assert not (folder / "report.html").exists()
    assert worker.run(task, folder) == 0
    assert ("from the earlier run" in said.read_text()) == (task == "command_learned")
    assert digests(folder) == digests(expected)
    assert {"report.html", "record.json", "report.json"} <= digests(folder).keys()
    assert not (folder / "blocks").exists()
