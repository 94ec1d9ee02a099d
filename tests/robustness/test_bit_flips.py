"""One changed bit anywhere in a result or in the state of a run is never accepted."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import brecq
from brecq.checkpoint.resume import has_run
from brecq.errors import CheckpointError

Undisturbed = Callable[[str], tuple[Path, float]]
Digests = Callable[[Path], dict[str, str]]


def flip(file: Path, bit: int) -> bytes:
    """Change one bit; returns what was there."""
    content = file.read_bytes()
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    return content


def refuse_flips(folder: Path, each: int) -> int:
    chance, flips = random.Random(0), 0
    for file in sorted(folder.iterdir()):
        for bit in chance.sample(range(8 * file.stat().st_size), each):
            content = flip(file, bit)
            with pytest.raises(CheckpointError):
                brecq.load(folder)
            file.write_bytes(content)
            flips += 1
    brecq.load(folder)
    return flips


def test_a_result_with_one_changed_bit_is_refused(undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(undisturbed("quantize")[0], tmp_path / "result"))
    assert refuse_flips(folder, 40) == 200


@pytest.mark.slow
def test_many_changed_bits_of_a_result(undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(undisturbed("quantize")[0], tmp_path / "result"))
    assert refuse_flips(folder, 1000) == 5000


@pytest.fixture(scope="module")
def unfinished(worker: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after two of its three blocks."""
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    assert worker.run("quantize", folder, number=signal.SIGKILL, until="blocks/pass*-block0001*") == -signal.SIGKILL
    assert has_run(folder)
    return folder


def resume_flipped(
    worker: Any, unfinished: Path, expected: dict[str, str], digests: Digests, scratch: Path, each: int
) -> None:
    """A run with one changed bit is refused, or learns again what was changed and ends bit-equal."""
    chance = random.Random(0)
    for name in sorted(file.name for file in unfinished.glob("blocks/*")):
        for number in range(each):
            folder = Path(shutil.copytree(unfinished, scratch / f"{name}-{number}"))
            file = folder / "blocks" / name
            flip(file, chance.randrange(8 * file.stat().st_size))
            status = worker.run("quantize", folder)
            if status == 2:
                assert "was changed or damaged" in folder.with_suffix(".error").read_text()
            else:
                assert status == 0
                assert digests(folder) == expected


def test_a_run_with_one_changed_bit(
    worker: Any, undisturbed: Undisturbed, unfinished: Path, digests: Digests, tmp_path: Path
) -> None:
    resume_flipped(worker, unfinished, digests(undisturbed("quantize")[0]), digests, tmp_path, each=1)


@pytest.mark.slow
def test_many_changed_bits_of_a_run(
    worker: Any, undisturbed: Undisturbed, unfinished: Path, digests: Digests, tmp_path: Path
) -> None:
    resume_flipped(worker, unfinished, digests(undisturbed("quantize")[0]), digests, tmp_path, each=20)


def test_edited_fields_are_named(undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(undisturbed("quantize")[0], tmp_path / "result"))
    manifest = json.loads((folder / "manifest.json").read_text())
    for field in (
        "tensors",
        "activations",
        "files",
        "config",
        "seed",
        "data_digest",
        "metadata",
        "submodule",
        "ranges",
    ):
        (folder / "manifest.json").write_text(json.dumps({**manifest, field: 0.5}))
        with pytest.raises(CheckpointError, match=rf"{field} is '0\.5', not "):
            brecq.load(folder)
