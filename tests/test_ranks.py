"""Several processes (two gloo ranks) against one: the same codes, the same numbers up to floating-point order."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brecq.errors import DataError
from brecq.ranks import UNIT, Share

SCRIPT = Path(__file__).parent / "distributed.py"
ALIKE = ("fast", "tuned", "instant", "wide", "paper", "shared", "survey", "distill")

TOLERANCE = 1e-3
"""Of scales, biases and errors, relative to the largest of a tensor: Adam's first steps have the size of the learning
rate whatever the size of the gradient, so that one of which only the rounding errors differ is a step apart."""


def start(folder: Path, jobs: list[str], size: int = 2) -> list[subprocess.Popen[str]]:
    environment = {**os.environ, "BRECQ_KERNELS": "eager", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(SCRIPT.parents[1] / "src")
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), str(size), *jobs],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> list[int]:
    for process in processes:
        _, text = process.communicate(timeout=300)
        if process.returncode not in (0, -9):
            print(text)
    return [process.returncode for process in processes]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distributed_jobs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of what two processes made of every job; the second was killed in the last one."""
    folder = tmp_path_factory.mktemp("ranks")
    assert finish(start(folder, [*ALIKE, "unlike", "killed"])) == [0, -9]
    return folder


def compare(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    equal = total = 0
    for name, value in one.items():
        if value.dtype in (torch.int8, torch.uint8):
            equal += int((value == two[name]).sum())
            total += value.numel()
        elif value.is_floating_point() and value.numel():
            largest = value.abs().max().clamp(min=1e-30)
            assert (value - two[name]).abs().max() <= TOLERANCE * largest, name
    assert equal >= 0.999 * total


@pytest.mark.parametrize("job", ALIKE)
def test_two_processes_do_what_one_does(
    job: str, script: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRECQ_KERNELS", "eager")
    one = script.JOBS[job](tmp_path)
    two, other = (torch.load(folder / f"{job}.{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, other[name]) for name, value in two.items())  # both ended with the same
    compare(one, two)


def test_what_differs_between_the_processes_is_refused_in_all(folder: Path) -> None:
    first, second = (torch.load(folder / f"unlike.{rank}.pt")["error"] for rank in (0, 1))
    assert second == "ConfigError: the processes of the run were given different data; give all of them the same"
    assert first == f"PeerError: process 1 of 2 failed: {second.partition(': ')[2]}"


def test_a_killed_process_ends_the_others_and_one_continues(
    script: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRECQ_KERNELS", "eager")
    error = torch.load(folder / "killed.0.pt")["error"]
    assert error.startswith("PeerError: another of the 2 processes has ended")
    assert error.endswith("continues with resume, also with another number of processes")
    assert len(list((folder / "run" / "blocks").glob("*.safetensors"))) == 2
    compare(script.quantized("fast", steps=4, tuning=0), script.JOBS["kept"](folder))


@given(samples=st.integers(1, 700), size=st.integers(1, 5), wanted=st.integers(1, 300))
def test_shares(samples: int, size: int, wanted: int) -> None:
    if samples <= UNIT * (size - 1):
        with pytest.raises(DataError, match=f"{samples} calibration samples are too few for {size} processes"):
            Share(samples, 0, size)
        return
    shares = [Share(samples, rank, size) for rank in range(size)]
    assert [i for share in shares for i in range(share.start, share.stop)] == list(range(samples))
    longest, shortest = max(map(len, shares)), min(map(len, shares))
    assert 0 < longest - shortest + 1 <= UNIT + 2
    batch = torch.arange(samples)[:: max(1, samples // 30)]
    parts = [share.part(batch) for share in shares]
    assert torch.equal(torch.cat([p.places + s.start for p, s in zip(parts, shares, strict=True)]), batch)
    assert [p.before for p in parts] == [sum(len(q.places) for q in parts[:i]) for i in range(size)]
    assert sum(p.weight for p in parts) == pytest.approx(1)

    every = Share(samples).every_unit(wanted)
    mine = [
        (unit.number, unit.rows.start + share.start, unit.rows.stop + share.start)
        for share in shares
        for unit in share.units(wanted)
    ]
    assert mine == [(unit.number, unit.rows.start, unit.rows.stop) for unit in every]
    assert sum(stop - start for _, start, stop in mine) == min(wanted, samples)
    assert all(start < stop for _, start, stop in mine)
    in_batches = [unit for batch in shares[0].batches(64) for unit in batch]
    assert in_batches == shares[0].units()
