"""`brecq inspect`: the inputs it chooses, and what it shows of a small network."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from brecq.cli.options import Changes
from brecq.data import Preprocessing
from brecq.errors import ConfigError
from brecq.sources import Source

command = importlib.import_module("brecq.cli.inspect")
Invoke = Callable[..., Result]


def a_source(inputs: tuple[torch.Tensor, ...]) -> Source:
    return Source("network", torch.nn.Identity(), None, inputs, "file.py:build")


NONE, WIDE, SQUARE = Changes(), Changes(size=(8, 24)), Changes(size=(8, 8))


def test_example_inputs_stay_unless_a_size_is_given() -> None:
    source = a_source((torch.rand(2, 3, 16, 16),))
    assert command.choose_inputs(source, NONE, None) is source.example_inputs
    assert [x.shape for x in command.choose_inputs(source, WIDE, None)] == [(2, 3, 8, 24)]
    assert [x.shape for x in command.choose_inputs(a_source(()), WIDE, None)] == [(2, 3, 8, 24)]


def test_inputs_that_cannot_be_chosen() -> None:
    with pytest.raises(ConfigError, match=r"--data FILE\.npz .*, or --size"):
        command.choose_inputs(a_source(()), NONE, None)
    with pytest.raises(ConfigError, match=r"takes \[2, 7\]"):
        command.choose_inputs(a_source((torch.rand(2, 7),)), SQUARE, None)
    with pytest.raises(ConfigError, match="--mean says how pictures become inputs"):
        command.choose_inputs(a_source(()), Changes(size=(8, 8), mean=(0.5,)), None)


def test_pictures_are_prepared_as_told(images: Path) -> None:
    plain = Changes(mean=(0.0,), std=(1.0,), size=(8, 8))
    (found,) = command.choose_inputs(a_source(()), plain, images)
    assert found.shape == (2, 3, 8, 8)
    (gray,) = command.choose_inputs(a_source((torch.rand(2, 1, 8, 8),)), plain, images)  # what the network takes
    assert torch.equal(gray, Preprocessing((0.0,), (1.0,), (8, 8), None, color="GRAY").normalize_pixels(
        (found * 255).round().byte().permute(0, 2, 3, 1).numpy()
    ))  # fmt: skip
    source, changes = a_source((torch.rand(2, 1, 8, 8),)), Changes(color="RGB", mean=(0.0,), std=(1.0,), size=(8, 8))
    (colored,) = command.choose_inputs(source, changes, images)
    assert torch.equal(colored, found)


TOKENS = """
import torch
from torch import nn

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 8), nn.Linear(8, 3)
    def forward(self, input_ids, attention_mask):
        return self.head(self.embed(input_ids) * attention_mask[..., None]).mean(1)
"""


def test_a_network_of_tokens(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "text.py").write_text(TOKENS)
    np.savez(tmp_path / "t.npz", attention_mask=np.ones((4, 6), "int64"), input_ids=np.full((4, 6), 29, "int64"))
    result = invoke("inspect", f"{tmp_path}/text.py:Text", "--data", f"{tmp_path}/t.npz:attention_mask,input_ids")
    assert result.exit_code == 0, result.output
    assert "attention_mask 6, input_ids 6" in result.stdout
    assert "a look-up of rows in a table" in result.stdout
    assert invoke("inspect", f"{tmp_path}/text.py:Text", "--data", f"{tmp_path}/t.npz:input_ids").exit_code == 2


def test_lines_of_a_pipe_are_not_wrapped(invoke: Invoke, network_file: Path) -> None:
    result = invoke("inspect", f"{network_file}:build", "--full")
    rows = [line for line in result.stdout.splitlines() if "body.1.conv2" in line]
    assert any("bit" in line and "bit" in line.split("(body.1.conv2)")[1] for line in rows)


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


def test_sensitivity_names_what_each_tensor_loses(network_file: Path, invoke: Invoke, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((8, 3, 16, 16)).astype(np.float32))
    model = f"{network_file}:build"
    result = invoke("inspect", model, "--sensitivity", "--data", tmp_path / "x.npz", "-w", "2", "-a", "8")
    assert result.exit_code == 0, result.output
    assert "What each tensor loses alone: the worst" in result.output
    as_json = invoke("inspect", model, "--sensitivity", "--data", tmp_path / "x.npz", "-w", "2", "--json")
    losses = json.loads(as_json.stdout)["losses"]
    worst = [max(each["outputs"].values()) for each in losses]
    assert worst == sorted(worst, reverse=True)
    assert losses[0]["bits"] == 2  # weights of two bits lose more than any activation of eight
    assert losses[0]["kind"] == "weight"
    without = invoke("inspect", model, "--sensitivity")
    assert "give some with --data" in (without.output + str(without.exception))
