"""`brecq evaluate`: which float model it compares with, and on what."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import brecq
from brecq.errors import ConfigError, SourceError

command = importlib.import_module("brecq.cli.evaluate")

TIMM = {"source": {"spec": "timm:resnet18", "weights": None, "submodule": None}}
PYTHON = {"source": {"spec": "model.py:build", "weights": "w.pt", "submodule": None}}


@pytest.mark.parametrize(
    ("metadata", "model", "weights", "needed", "chosen"),
    [
        (TIMM, None, None, True, ("timm:resnet18", None)),
        (TIMM, None, Path("w.pt"), True, ("timm:resnet18", Path("w.pt"))),
        (TIMM, "timm:resnet50", None, True, ("timm:resnet50", None)),
        (PYTHON, "model.py:build", Path("w.pt"), True, ("model.py:build", Path("w.pt"))),
        (PYTHON, None, None, False, (None, None)),
        ({}, None, None, False, (None, None)),
        ({"source": {**TIMM["source"], "weights": "/w.pt"}}, None, None, True, ("timm:resnet18", Path("/w.pt"))),
    ],
)
def test_the_float_model(
    metadata: dict[str, Any], model: str | None, weights: Path | None, needed: bool, chosen: tuple[str | None, Any]
) -> None:
    assert command.choose_reference(metadata, model, weights, needed=needed) == chosen


def test_python_code_named_by_a_result_is_never_run_by_itself() -> None:
    with pytest.raises(ConfigError, match=r"--model MODEL \(it was model.py:build\)"):
        command.choose_reference(PYTHON, None, None, needed=True)


def test_weights_without_a_model_to_load_them_into() -> None:
    with pytest.raises(ConfigError, match="--model"):
        command.choose_reference({}, None, Path("w.pt"), needed=False)


def test_a_float_model_that_is_gone_names_the_ways_around() -> None:
    with pytest.raises(SourceError, match=r"missing.py.*--model.*--no-reference"):
        command.load_reference("missing.py:build", None, False)


def test_a_damaged_picture_is_left_out_and_named(
    invoke: Callable[..., Result], network_file: Path, images: Path, tmp_path: Path
) -> None:
    few, out = tmp_path / "few", tmp_path / "out"
    few.mkdir()
    for name in ("00.png", "01.png", "02.png", "03.png"):
        (few / name).write_bytes((images / name).read_bytes())
    (few / "02.png").write_text("broken")
    quantized = (
        "quantize",
        f"{network_file}:build",
        "--calib",
        few,
        "--method",
        "rtn",
        "-w",
        "8",
        "-a",
        "8",
        "-o",
        out,
    )
    strict = invoke(*quantized, "--max-skipped", "0")
    assert strict.exit_code == 2
    assert "02.png: not an image; remove or repair them, or allow for more" in strict.stderr
    result = invoke(*quantized)
    assert result.exit_code == 0, result.output
    told = "1 file cannot be read and is left out: 02.png: not an image"
    assert f"warning: {few}: {told}" in result.stderr
    assert "3 samples of 3 × 16 × 16" in result.stdout
    assert f"calibration: {told}" in brecq.load(out).report.notes
    result = invoke("evaluate", out, "--data", few, "--model", f"{network_file}:build")
    assert result.exit_code == 0, result.output
    assert told in result.stderr
    assert (
        invoke("evaluate", out, "--data", few, "--model", f"{network_file}:build", "--max-skipped", "0").exit_code == 2
    )
