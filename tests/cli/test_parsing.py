"""From the text of single options to values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brecq.cli import parsing
from brecq.config import Recipe
from brecq.errors import ConfigError, DataError

# every field of Recipe, as text and as value, different from the preset `fast`
RECIPE = {
    "name": ("mine", "mine"),
    "steps": ("50", 50),
    "batch_size": ("16", 16),
    "rounding_lr": ("1e-2", 1e-2),
    "step_lr": ("0.002", 2e-3),
    "joint": ("false", False),
    "activation_steps": ("25", 25),
    "step_space": ("linear", "linear"),
    "bias_lr": ("0.05", 0.05),
    "qdrop": ("0", 0.0),
    "loss": ("fisher", "fisher"),
    "fisher_labels": ("given", "given"),
    "normalize_loss": ("no", False),
    "rounding_penalty": ("0.01", 0.01),
    "beta": ("10,3", (10.0, 3.0)),
    "warmup": ("0.5", 0.5),
    "keep_best": ("0", False),
    "held_out": ("0.25", 0.25),
    "tuning": ("2", 2.0),
    "tune_lr": ("0.1", 0.1),
    "range_norm": ("2", 2.0),
    "range_candidates": ("80", 80),
    "range_samples": ("64", 64),
}


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(Recipe)])
def test_every_field_of_the_recipe_can_be_set(key: str) -> None:
    text, value = RECIPE[key]
    settings = [f"{key}={text}"] + (["joint=false"] if key == "activation_steps" else [])
    recipe = parsing.parse_recipe("fast", settings, {})
    assert getattr(recipe, key) == value
    assert type(getattr(recipe, key)) is type(value)
    assert value != getattr(Recipe.preset("fast"), key)


def test_a_changed_recipe_is_called_custom_and_an_unchanged_one_keeps_its_name() -> None:
    assert parsing.parse_recipe("paper", [], {}).name == "paper"
    changed = parsing.parse_recipe("paper", ["steps=10"], {})
    assert changed == dataclasses.replace(Recipe.preset("paper"), steps=10, name="custom")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("4096", 4096), ("4096B", 4096), ("4GB", 4 * 10**9), ("4 gb", 4 * 10**9), ("1.5G", 1_500_000_000),
        ("512MiB", 512 * 2**20), ("2kb", 2000), ("1TiB", 2**40),
    ],
)  # fmt: skip
def test_sizes_of_memory(text: str, size: int) -> None:
    assert parsing.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-1GB", "GB", "4XB", "4 GB more", "4Bi"])
def test_sizes_of_memory_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="--memory-budget"):
        parsing.parse_bytes(text)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_survive_the_trip_through_text(numbers: list[float]) -> None:
    assert parsing.parse_numbers("--mean", ",".join(map(repr, numbers))) == tuple(numbers)


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
