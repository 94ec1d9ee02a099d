"""`brecq evaluate`: which float model it compares with."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

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
