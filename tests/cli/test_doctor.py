"""`brecq doctor` tells what is here, and what each optional package would enable."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from brecq.cli.extras import Extra, enables, extras
from brecq.quant import kernels
from brecq.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_it_tells_versions_devices_and_packages(invoke: Callable[..., Result]) -> None:
    result = invoke("doctor")
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[0].startswith(f"brecq         {__version__}, Python 3.")
    assert torch.__version__.startswith(lines[1].split()[1].rstrip(",").partition("+")[0])
    (compiler,) = (line for line in lines if line.startswith("C++ compiler "))
    assert ("none found" in compiler) == kernels.backend("cpu").startswith("eager (no C++")
    (cpu,) = (line for line in lines if line.startswith("cpu "))
    assert cpu.endswith(f"kernels: {kernels.backend('cpu')}")
    names = [extra.name for extra in extras()]
    rows = {line.split()[0]: line for line in lines if line.split()[:1] and line.split()[0] in names}
    for extra in extras():
        assert (f"pip install 'brecq[{extra.name}]'" in rows[extra.name]) == bool(extra.wrong())
        assert extra.enables in rows[extra.name]


def test_what_is_missing_or_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "gone":
            raise metadata.PackageNotFoundError
        return {"old": "1.9.3", "even": "1.10", "ahead": "1.10.0.dev1+cpu"}[package]

    monkeypatch.setattr(metadata, "version", version)
    extra = Extra("x", "", ("gone>=1", "old>=1.10", "even>=1.10.0", "ahead>=1.10"))
    assert extra.wrong() == ["gone is missing", "old 1.9.3 is older than 1.10"]
    assert extra.found() == {"gone": "", "old": "1.9.3", "even": "1.10", "ahead": "1.10.0.dev1+cpu"}


def test_extras_are_read_as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "torch>=2.11",
        "tomli>=2.0; python_version < '3.11'",
        "onnx>=1.20; extra == 'onnx'",
        'onnxscript >=0.7 ; extra == "onnx"',
        "openvino>=2025.4; extra == 'openvino'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda _: lines)
    onnx, openvino = extras()
    assert (onnx.name, onnx.needs) == ("onnx", ("onnx>=1.20", "onnxscript >=0.7"))
    assert openvino.needs == ("openvino>=2025.4",)
    assert "onnxscript" in onnx.found()
    assert openvino.enables.startswith("OpenVINO: ")


def test_run_from_its_sources_it_says_so(invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(package: str) -> list[str]:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "requires", requires)
    assert "unknown: brecq is not installed" in invoke("doctor").stdout


def test_it_knows_what_every_extra_is_for() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert all(enables(name) for name in project["optional-dependencies"])
