"""`brecq inspect`: the inputs it chooses, and what it shows of a small network."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from brecq.errors import ConfigError

command = importlib.import_module("brecq.cli.inspect")
Invoke = Callable[..., Result]


def test_example_inputs_stay_unless_a_size_is_given() -> None:
    inputs = (torch.rand(2, 3, 16, 16),)
    assert command.choose_inputs(inputs, None) is inputs
    assert [x.shape for x in command.choose_inputs(inputs, (8, 24))] == [(2, 3, 8, 24)]
    assert [x.shape for x in command.choose_inputs((), (8, 24))] == [(2, 3, 8, 24)]


def test_inputs_that_cannot_be_chosen() -> None:
    with pytest.raises(ConfigError, match="give --size"):
        command.choose_inputs((), None)
    with pytest.raises(ConfigError, match=r"takes \[2, 7\]"):
        command.choose_inputs((torch.rand(2, 7),), (8, 8))


def inspect_json(invoke: Invoke, *arguments: object) -> dict:
    result = invoke("inspect", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_blocks_and_scope_of_a_network(invoke: Invoke, network_file: Path) -> None:
    found = inspect_json(invoke, f"{network_file}:build")
    assert [block["name"] for block in found["blocks"]] == ["stem", "body.0", "body.1", "head"]
    assert {entry["layer"] for entry in found["scope"]} >= {"stem", "body.0.conv1", "body.1.conv2", "head"}


def test_the_tables(invoke: Invoke, network_file: Path) -> None:
    result = invoke("inspect", f"{network_file}:build")
    assert result.exit_code == 0, result.output
    for text in ("network", "3 × 16 × 16", "body.0", "Quantization scope", "MACs"):
        assert text in result.stdout
    assert "body.1.conv2" not in result.stdout
    assert "body.1.conv2" in invoke("inspect", f"{network_file}:build", "--full").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["-w", "2"],
        ["-a", "4"],
        ["--first-last", "none"],
        ["--set", "body.0.*", "w=6"],
        ["--placement", "input"],
        ["--weight-scheme", "symmetric"],
        ["--activation-scheme", "symmetric"],
        ["--granularity", "layer"],
        ["--block", "start=stem,body.0"],
        ["--size", "32"],
        ["--submodule", "body"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_each_option_changes_what_is_shown(invoke: Invoke, network_file: Path, arguments: list[str]) -> None:
    spec = f"{network_file}:build"
    assert inspect_json(invoke, spec, *arguments) != inspect_json(invoke, spec)


def test_nothing_is_written(
    invoke: Invoke, network_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert invoke("inspect", f"{network_file}:build").exit_code == 0
    assert not any(folder.iterdir())


def test_a_checkpoint_that_does_not_fit_is_refused(invoke: Invoke, network_file: Path, tmp_path: Path) -> None:
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "wrong.pt")
    result = invoke("inspect", f"{network_file}:build", "--weights", tmp_path / "wrong.pt")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


class Evil:
    def __reduce__(self) -> tuple:
        return print, ("code was run",)


def test_a_checkpoint_that_runs_code_needs_trust(invoke: Invoke, network_file: Path, tmp_path: Path) -> None:
    torch.save({"stem.weight": Evil()}, tmp_path / "evil.pt")
    refused = invoke("inspect", f"{network_file}:build", "--weights", tmp_path / "evil.pt")
    assert refused.exit_code == 2
    assert "code was run" not in refused.output
    trusted = invoke("inspect", f"{network_file}:build", "--weights", tmp_path / "evil.pt", "--trust-pickle")
    assert "code was run" in trusted.output
