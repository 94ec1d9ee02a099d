"""`brecq distill`, and quantization without data, on a small network with trained-like statistics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

import brecq
from brecq.synthesis import distill as synthesis

Invoke = Callable[..., Result]

SMALL = ("--distill-set", "steps=8", "--distill-set", "batch_size=6")
TRAINED = """
from network import build as untrained
import torch


def build():
    model, preprocessing = untrained()
    for block in model.body:
        torch.nn.init.uniform_(block.bn1.running_mean, -0.5, 0.5)
        torch.nn.init.uniform_(block.bn1.running_var, 0.5, 1.5)
    return model, preprocessing


def bare():
    model, _ = build()
    model.example_inputs = torch.rand(2, 3, 16, 16)
    return model
"""


@pytest.fixture(scope="module")
def trained(network_file: Path) -> str:
    """The network of the other tests, with batch norms that remember something."""
    path = network_file.with_name("trained.py")
    path.write_text(TRAINED)
    return f"{path}:build"


def test_distill_and_quantize_with_what_it_made(invoke: Invoke, trained: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    result = invoke("distill", trained, "--n", "12", "-o", folder, *SMALL)
    assert result.exit_code == 0, result.output
    for text in ("12 inputs, custom: spectrum", "[2/2] inputs 7-12  error ", "body.0.bn1", "mean of all 2"):
        assert text in result.stdout
    assert np.load(folder / "distilled.npz")["x"].shape == (12, 3, 16, 16)
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.size == (8 * 34 - 2, 2 * 34 - 2)
    assert len(json.loads((folder / "distilled.json").read_text())["layers"]) == 2
    assert not (folder / "blocks").exists()

    quantize = ("quantize", trained, "--calib-size", "12", "--steps", "3", "--batch-size", "4")
    result = invoke(*quantize, "--calib", folder, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "12 samples of 3 × 16 × 16" in result.stdout
    assert brecq.load(tmp_path / "out").report.samples == 12


def test_quantize_without_data(invoke: Invoke, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    arguments = ("quantize", trained, "--calib", "distilled", "--calib-size", "8", "-o", out, "--steps", "3")
    start = (*arguments, "--batch-size", "4", *SMALL)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(brecq, "quantize", interrupted)
        assert invoke(*start).exit_code != 0
    monkeypatch.setattr(synthesis, "optimize_batch", None)  # finished batches are not made again
    result = invoke(*start, "--resume")
    assert result.exit_code == 0, result.output
    assert "from the earlier run" in result.stdout
    assert brecq.load(out).report.samples == 8
    assert sorted(file.name for file in (out / "distilled").iterdir()) == [
        "contact_sheet.png", "distilled.html", "distilled.json", "distilled.npz",
    ]  # fmt: skip


def test_a_folder_of_that_name_is_data(
    invoke: Invoke, trained: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "distilled").symlink_to(images)
    arguments = ("quantize", trained, "--calib", "distilled", "--calib-size", "8", "--method", "rtn", "-o", "out")
    result = invoke(*arguments, "--distill-preset", "fast")
    assert result.exit_code == 2
    assert "'distilled' is there and is read" in result.stderr
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "8 samples of 3 × 16 × 16 from distilled" in result.stdout


def test_labels_that_distilled_inputs_do_not_have_are_refused_before_they_are_made(
    invoke: Invoke, trained: str, tmp_path: Path
) -> None:
    result = invoke(
        "quantize", trained, "--calib", "distilled", "--loss", "fisher", "--recipe-set", "fisher_labels=given",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "one class index a sample, and distilled inputs have none" in result.stderr
    assert not (tmp_path / "out" / "distilled").exists()


def test_a_model_without_preprocessing_is_distilled_by_its_example(
    invoke: Invoke, trained: str, tmp_path: Path
) -> None:
    result = invoke("distill", trained.replace(":build", ":bare"), "--n", "4", "-o", tmp_path / "set", *SMALL)
    assert result.exit_code == 0, result.output
    assert "contact_sheet" not in result.stdout
    assert not (tmp_path / "set" / "contact_sheet.png").exists()


def test_pictures_for_a_model_without_batch_norm(
    invoke: Invoke, network_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    untrained = f"{network_file}:build"  # its batch norms remember nothing
    out = tmp_path / "out"
    arguments = ("quantize", untrained, "--calib", "distilled", "--calib-size", "8", "--method", "rtn", "-o", out)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "as before training" in result.stderr
    result = invoke(*arguments, "--distill-preset", "leaves")
    assert result.exit_code == 0, result.output
    assert "drawn without looking at the network" in result.stdout
    assert np.load(out / "distilled" / "distilled.npz")["x"].shape == (8, 3, 16, 16)
    with Image.open(out / "distilled" / "contact_sheet.png") as sheet:
        assert sheet.size == (8 * 34 - 2, 32)


def test_the_size_and_the_seed_are_heeded(invoke: Invoke, trained: str, tmp_path: Path) -> None:
    found = []
    for name, more in (("a", ()), ("b", ("--seed", "1")), ("c", ("--size", "12"))):
        assert invoke("distill", trained, "--n", "2", "-o", tmp_path / name, *SMALL, *more).exit_code == 0
        found.append(np.load(tmp_path / name / "distilled.npz")["x"])
    assert found[2].shape == (2, 3, 12, 12)
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--distill-set", "stesp=3"), "unknown setting 'stesp'"),
        (("--distill-set", "seed=3"), "unknown setting 'seed'"),
        (("--distill-set", "steps=few"), "--distill-set steps is 'few'; give a whole number"),
        (("--distill-preset", "slow"), "preset is 'slow'; choose one of fast, full, leaves"),
        (("--n", "1"), "n is 1; distill at least 2"),
        (("--resume", "--force"), "keep one"),
    ],
)
def test_errors(invoke: Invoke, trained: str, tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    result = invoke("distill", trained, "-o", tmp_path / "set", *more)
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_untrained_model_is_refused(invoke: Invoke, network_file: Path, tmp_path: Path) -> None:
    result = invoke("distill", f"{network_file}:build", "-o", tmp_path / "set")
    assert result.exit_code == 2
    assert "load trained weights" in result.stderr


def test_a_finished_set_is_not_overwritten(invoke: Invoke, trained: str, tmp_path: Path) -> None:
    arguments = ("distill", trained, "--n", "2", "-o", tmp_path / "set", *SMALL)
    assert invoke(*arguments).exit_code == 0
    for more, message in (((), "--force"), (("--resume",), "is finished")):
        refused = invoke(*arguments, *more)
        assert refused.exit_code == 2
        assert message in refused.stderr
    assert invoke(*arguments, "--force").exit_code == 0
