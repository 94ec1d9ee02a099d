"""From the text of single options to values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import Result

from brecq import text
from brecq.cli import parsing
from brecq.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("amount", "size"),
    [
        ("0", 0), ("4096", 4096), ("4096B", 4096), ("4GB", 4 * 10**9), ("4 gb", 4 * 10**9), ("1.5G", 1_500_000_000),
        ("512MiB", 512 * 2**20), ("2kb", 2000), ("1TiB", 2**40),
    ],
)  # fmt: skip
def test_sizes_of_memory(amount: str, size: int) -> None:
    assert text.parse_bytes("--memory-budget", amount) == size


def test_the_command_that_repeats_a_resumed_run_is_the_one_that_began_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/brecq", "quantize", "a b", "--resume", "-o", "out"])
    assert parsing.typed() == "brecq quantize 'a b' -o out"


@pytest.mark.parametrize("amount", ["", "-1GB", "GB", "4XB", "4 GB more", "4Bi"])
def test_sizes_of_memory_that_cannot_be_read(amount: str) -> None:
    with pytest.raises(ConfigError, match="--memory-budget"):
        text.parse_bytes("--memory-budget", amount)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_survive_the_trip_through_text(numbers: list[float]) -> None:
    assert text.parse_numbers("--mean", ",".join(map(repr, numbers))) == tuple(numbers)


@pytest.mark.parametrize(
    ("arguments", "joined"),
    [
        (["--set", "layer4.*", "w=8", "-w", "4"], ["--set", "layer4.* w=8", "-w", "4"]),
        (["--set", "layer4.* w=8", "x"], ["--set", "layer4.* w=8", "x"]),
        (["--set=layer4.*", "w=8"], ["--set=layer4.* w=8"]),
        (["--set", "a", "w=8", "--set", "b", "float"], ["--set", "a w=8", "--set", "b float"]),
        (["--set", "a", "--seed", "1"], ["--set", "a", "--seed", "1"]),
        (["--set", "a"], ["--set", "a"]),
        (["--set"], ["--set"]),
        (["--seed", "1", "--settle", "a", "b"], ["--seed", "1", "--settle", "a", "b"]),
        (["--", "--set", "a", "b"], ["--", "--set", "a", "b"]),
    ],
)
def test_pairs_become_one_value(arguments: list[str], joined: list[str]) -> None:
    assert parsing.join_pairs(arguments) == joined


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    parsing.require_path("--eval", None)
    parsing.require_path("--eval", tmp_path)
    with pytest.raises(DataError, match=r"--eval is .*missing"):
        parsing.require_path("--eval", tmp_path / "missing")
    with pytest.raises(DataError, match="not a file"):
        parsing.require_path("--weights", tmp_path, file=True)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("distill", "net.py:build", "--steps", "3"), "--distill-set steps=…"),
        (("quantize", "net.py:build", "--held-out=0.1"), "--recipe-set held_out=…"),
        (("quantize", "net.py:build", "--smoothness", "1"), "--distill-set smoothness=…"),
        (("distill", "net.py:build", "--name", "x"), "--mean"),  # a preset's name is not set
    ],
)
def test_a_setting_typed_as_an_option_is_told_how_it_is_set(
    invoke: Callable[..., Result], arguments: tuple[str, ...], hint: str
) -> None:
    found = invoke(*arguments)
    assert found.exit_code == 2
    assert hint in found.output
