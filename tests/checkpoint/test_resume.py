from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from brecq.checkpoint import resume as resume_module
from brecq.checkpoint.resume import RunState, alone_in_run_dir, fingerprint
from brecq.errors import CheckpointError
from brecq.storage import files


def block(index: int) -> dict[str, Tensor]:
    base = torch.arange(6.0)
    return {
        "layer.alpha": base.view(2, 3).t() + index,
        "layer.view": base[2:4],
        "scale": torch.tensor(0.5),
        "hard": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }


def save(run: RunState, *indexes: int, pass_index: int = 0) -> None:
    for index in indexes:
        run.save_block(pass_index, index, f"layer{index}", block(index), {"error": 0.1 * index, "layers": ["a"]})


def block_file(run_dir: Path, index: int) -> Path:
    return run_dir / "blocks" / f"pass0-block{index:04d}.safetensors"


def test_blocks_come_back_as_saved(tmp_path: Path) -> None:
    save(RunState(tmp_path / "new" / "run", "f"), 0, 1)
    run = RunState(tmp_path / "new" / "run", "f", resume=True)
    assert run.finished(0) == [0, 1]
    name, state, report = run.load_block(0, 1)
    assert (name, report) == ("layer1", {"error": 0.1, "layers": ["a"]})
    assert state.keys() == block(1).keys()
    assert all(torch.equal(state[key], value) and state[key].dtype == value.dtype for key, value in block(1).items())


def test_a_block_without_tensors(tmp_path: Path) -> None:
    run = RunState(tmp_path, "f")
    run.save_block(0, 0, "pool", {}, {})
    assert run.finished(0) == [0]
    assert run.load_block(0, 0) == ("pool", {}, {})


def test_only_consecutive_blocks_count_and_passes_are_apart(tmp_path: Path) -> None:
    run = RunState(tmp_path, "f")
    save(run, 0, 1, 3)
    save(run, 0, pass_index=1)
    assert [run.finished(index) for index in range(3)] == [[0, 1], [0], []]


def test_without_resume_the_run_starts_again(tmp_path: Path) -> None:
    save(RunState(tmp_path, "f"), 0, 1)
    assert RunState(tmp_path, "f").finished(0) == []
    assert RunState(tmp_path, "f", resume=True).finished(0) == []


def test_resume_with_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing to resume in .*; start without --resume"):
        RunState(tmp_path, "f", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """`run_dir="proj"` where proj/blocks holds the user's files, some of them under names like brecq's."""
    mine = tmp_path / "blocks"
    mine.mkdir()
    for name in ("stairs.blend", "run.json", "pass0-block0000.safetensors"):
        (mine / name).write_text("{}")
        with pytest.raises(CheckpointError, match=r"holds .*, but no run of brecq, and is left alone"):
            RunState(tmp_path, "f")
    assert sorted(file.name for file in mine.iterdir()) == ["pass0-block0000.safetensors", "run.json", "stairs.blend"]


def test_files_beside_the_blocks_outlive_them(tmp_path: Path) -> None:
    run = RunState(tmp_path, "f")
    save(run, 0, 1)
    (tmp_path / "blocks" / "notes.txt").write_text("")
    RunState(tmp_path, "f").clear()
    assert [file.name for file in (tmp_path / "blocks").iterdir()] == ["notes.txt"]


def test_clear_leaves_other_files_alone(tmp_path: Path) -> None:
    run = RunState(tmp_path, "f")
    save(run, 0)
    (tmp_path / "report.json").write_text("{}")
    run.clear()
    run.clear()
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_another_fingerprint_is_refused_and_left_alone(tmp_path: Path) -> None:
    weights = {"w": torch.ones(2)}
    first = fingerprint({"steps": 1}, weights, "data", ["a", "b"])
    save(RunState(tmp_path, first), 0)
    other = fingerprint({"steps": 2}, weights, "other data", ["a", "b"])
    with pytest.raises(CheckpointError, match=r"different config and data; .*--resume"):
        RunState(tmp_path, other, resume=True)
    with pytest.raises(CheckpointError, match="different fingerprint"):
        RunState(tmp_path, "unnamed", resume=True)
    assert RunState(tmp_path, first, resume=True).finished(0) == [0]


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(RunState(tmp_path, "f"), 0)
    monkeypatch.setattr(resume_module, "VERSION", 3)
    with pytest.raises(CheckpointError, match="format version 2, this brecq reads 3"):
        RunState(tmp_path, "f", resume=True)


def test_another_version_of_brecq_or_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ({"steps": 1}, {"w": torch.ones(2)}, "data", ["a"])
    save(RunState(tmp_path, fingerprint(*arguments)), 0)
    RunState(tmp_path, fingerprint(*arguments), resume=True)
    installed = resume_module.versions()
    monkeypatch.setattr(resume_module, "versions", lambda: {**installed, "torch": "9.9.9"})
    message = rf"different torch \({re.escape(installed['torch'])} then, 9\.9\.9 now\)"
    with pytest.raises(CheckpointError, match=message):
        RunState(tmp_path, fingerprint(*arguments), resume=True)


@pytest.mark.parametrize("content", ["", '{"version": 1, "finger', '{"format": "brecq run", "version": 2}'])
def test_a_damaged_run_file_is_refused(tmp_path: Path, content: str) -> None:
    save(RunState(tmp_path, "f"), 0)
    (tmp_path / "blocks" / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json was changed or damaged"):
        RunState(tmp_path, "f", resume=True)
    assert block_file(tmp_path, 0).exists()


def test_a_kill_before_the_run_file_is_complete_leaves_a_usable_folder(tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / ".tmp.run.json").write_text("")
    save(RunState(tmp_path, "f"), 0)
    assert RunState(tmp_path, "f", resume=True).finished(0) == [0]


def test_killed_while_writing_a_new_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file is never renamed: the blocks before it stay valid."""
    run = RunState(tmp_path, "f")
    save(run, 0)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)
    for index in (0, 1):  # writing block 0 over again, or the next one
        with pytest.raises(KeyboardInterrupt):
            save(run, index)
    monkeypatch.undo()
    resumed = RunState(tmp_path, "f", resume=True)
    assert resumed.finished(0) == [0]
    assert torch.equal(resumed.load_block(0, 0).state["layer.alpha"], block(0)["layer.alpha"])
    save(resumed, 1)
    assert resumed.finished(0) == [0, 1]


def test_one_changed_bit_makes_a_block_unfinished(tmp_path: Path) -> None:
    run = RunState(tmp_path, "f")
    save(run, 0)
    file = block_file(tmp_path, 0)
    content = file.read_bytes()
    for position in range(len(content)):  # of every byte
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        file.write_bytes(changed)
        assert run.finished(0) == [], position
    file.write_bytes(content)
    assert run.finished(0) == [0]


def test_another_thread_or_process_is_kept_out(tmp_path: Path) -> None:
    @alone_in_run_dir
    def work(inside: Callable[[], None], *, run_dir: Path | None) -> None:
        inside()

    def intrude() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work, lambda: None, run_dir=tmp_path / "run").result()

    with pytest.raises(CheckpointError, match=rf"is in use by process {os.getpid()};"):
        work(intrude, run_dir=tmp_path / "run")
    work(lambda: work(lambda: None, run_dir=tmp_path / "run"), run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    work(intrude, run_dir=None)


@pytest.mark.parametrize("keep", [0, 4, 40, -5])
def test_a_truncated_block_is_not_finished(tmp_path: Path, keep: int) -> None:
    run = RunState(tmp_path, "f")
    save(run, 0, 1, 2)
    file = block_file(tmp_path, 1)
    file.write_bytes(file.read_bytes()[:keep])
    assert run.finished(0) == [0]
    with pytest.raises(CheckpointError, match=r"block0001\.safetensors is missing or damaged"):
        run.load_block(0, 1)


def test_a_block_of_another_run_is_not_finished(tmp_path: Path) -> None:
    save(RunState(tmp_path / "a", "f"), 0)
    other = RunState(tmp_path / "b", "g")
    block_file(tmp_path / "b", 0).write_bytes(block_file(tmp_path / "a", 0).read_bytes())
    assert other.finished(0) == []


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="choose another"):
        RunState(tmp_path / "run", "f")


def test_fingerprints_depend_on_everything() -> None:
    weights = {"w": torch.ones(2, 3), "n": torch.tensor(1)}
    base = fingerprint({"a": 1, "b": [2]}, weights, "data", ["x"])
    assert base == fingerprint({"b": [2], "a": 1}, dict(reversed(weights.items())), "data", ["x"])
    different = [
        fingerprint({"a": 2, "b": [2]}, weights, "data", ["x"]),
        fingerprint({"a": 1, "b": [2]}, weights | {"w": torch.ones(3, 2)}, "data", ["x"]),
        fingerprint({"a": 1, "b": [2]}, weights | {"w": torch.ones(2, 3).double()}, "data", ["x"]),
        fingerprint({"a": 1, "b": [2]}, {"v": weights["w"], "n": weights["n"]}, "data", ["x"]),
        fingerprint({"a": 1, "b": [2]}, weights, "data2", ["x"]),
        fingerprint({"a": 1, "b": [2]}, weights, "data", ["x", "y"]),
    ]
    assert len({base, *different}) == 7
