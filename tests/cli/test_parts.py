"""A network in parts, from the command line: quantized, evaluated, exported, inspected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]

QUICK = ["--calib-size", "8", "--recipe-set", "steps=2", "--recipe-set", "range_candidates=10"]


def test_from_quantize_to_export(invoke: Invoke, network_file: Path, images: Path, tmp_path: Path) -> None:
    out, spec = tmp_path / "out", f"{network_file}:build"
    parts = ["--submodule", "body", "--submodule", "head"]
    found = invoke("quantize", spec, "--calib", images, *QUICK, *parts, "-o", out)
    assert found.exit_code == 0, found.output
    assert "reconstructed" in found.output
    page = (out / "report.html").read_text()
    assert "body.0.conv1" in page
    assert "outside the submodules" in page
    assert {folder.name for folder in (out / "parts").iterdir()} == {"0-body", "1-head"}
    measured = invoke("evaluate", out, "--data", images, "--model", spec, "--json")
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.output)["sqnr"] > 10
    exported = invoke("export", out, "--format", "pt2", "-o", tmp_path / "files")
    assert exported.exit_code == 0, exported.output
    assert {file.name for file in (tmp_path / "files").iterdir()} == {"body.pt2", "head.pt2"}
    verify_parts(invoke, out, spec, images, tmp_path / "onnx")
    card = invoke("card", out)
    assert (card.exit_code, (out / "README.md").exists()) == (2, False)
    assert "in parts" in card.output
    assert invoke("card", out / "parts" / "0-body").exit_code == 0
    alone = invoke("evaluate", out, "--data", images)
    assert alone.exit_code != 0
    assert "name it with --model" in alone.output


def verify_parts(invoke: Invoke, out: Path, spec: str, images: Path, files: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert invoke("export", out, "-o", files).exit_code == 0
    given = ("--data", images, "--samples", "8", "--model", spec)
    found = invoke("verify", out, files, *given, "--json")
    assert found.exit_code == 0, found.output
    values = json.loads(found.stdout)
    assert list(values) == ["body", "head"]
    assert all(each["as_expected"] and each["samples"] == 8 for each in values.values())
    assert "body.0" in {each["tensor"][:6] for each in values["body"]["against_float"]}
    one = invoke("verify", out, files / "head.onnx", *given)
    assert one.exit_code == 0, one.output
    assert "head, " in one.output
    assert "body" not in one.output
    unknown = invoke("verify", out, files / "head.onnx", "--data", images)
    assert "name it with --model" in unknown.output
    other = invoke("verify", out, out / "report.html", *given)
    assert "the parts of this result are body, head: give the folder" in other.output


def test_inspect_shows_all_parts(invoke: Invoke, network_file: Path) -> None:
    found = invoke("inspect", f"{network_file}:build", "--submodule", "body", "--submodule", "head", "--json")
    shown = json.loads(found.output)
    assert [block["name"] for block in shown["blocks"]] == ["body.0", "body.1", "head"]
    assert any(entry["op"] == "stem" and "naming it" in entry["reason"] for entry in shown["scope"])
