"""`brecq doctor` tells what is here, and does not drift from pyproject.toml."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from brecq.cli.extras import EXTRAS, Extra
from brecq.deploy.formats import FORMATS
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
    names = [extra.name for extra in EXTRAS]
    rows = {line.split()[0]: line for line in lines if line.split()[:1] and line.split()[0] in names}
    for extra in EXTRAS:
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


def test_the_extras_are_those_of_pyproject() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    groups = project["optional-dependencies"]

    def needs(name: str) -> set[str]:
        inner = [re.fullmatch(r"brecq\[(.*)\]", need) for need in groups[name]]
        own = {need for need, match in zip(groups[name], inner, strict=True) if match is None}
        return own.union(*(needs(other) for match in inner if match for other in match[1].split(",")))

    assert {extra.name: set(extra.needs) for extra in EXTRAS} == {
        name: needs(name) for name in groups if name != "dev"
    }
    assert {each.extra for each in FORMATS.values()} - {""} <= groups.keys()
