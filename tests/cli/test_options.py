"""From the text of the command line to configurations."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from brecq.cli import options
from brecq.config import LayerRule, QuantConfig, Recipe
from brecq.errors import ConfigError

# every parameter of config_from_options, a text that differs from the default, and what it must change
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "weight_bits": (2, {"weights": 2}),
    "activation_bits": (4, {"activations": 4}),
    "first_last": ("none", {"first_last": None}),
    "placement": ("input", {"placement": "input"}),
    "weight_scheme": ("symmetric", {"weight_scheme": "symmetric"}),
    "activation_scheme": ("asymmetric", {"activation_scheme": "asymmetric"}),
    "rules": (["layer4.* w=8"], {"rules": (LayerRule("layer4.*", weights=8),)}),
    "granularity": ("stage", {"granularity": "stage"}),
    "blocks": (["stem=conv1,layer1.*"], {"blocks": {"stem": ["conv1", "layer1.*"]}}),
    "method": ("rtn", {"method": "rtn"}),
    "recipe": ("paper", {"recipe": Recipe.preset("paper")}),
    "recipe_settings": (["warmup=0.1"], {"recipe": Recipe(warmup=0.1)}),
    "steps": (7, {"recipe": Recipe(steps=7)}),
    "batch_size": (8, {"recipe": Recipe(batch_size=8)}),
    "qdrop": (0.25, {"recipe": Recipe(qdrop=0.25)}),
    "loss": ("fisher", {"recipe": Recipe(loss="fisher")}),
    "autocast": ("bf16", {"autocast": "bf16"}),
    "memory_budget": ("4GB", {"memory_budget": 4_000_000_000}),
    "seed": (3, {"seed": 3}),
}


def test_without_options_the_default_configuration_results() -> None:
    assert options.config_from_options() == QuantConfig()


@pytest.mark.parametrize("name", CHANGES)
def test_each_option_changes_its_field_and_no_other(name: str) -> None:
    value, expected = CHANGES[name]
    assert options.config_from_options(**{name: value}) == dataclasses.replace(QuantConfig(), **expected)
    assert options.config_from_options(**{name: value}) != QuantConfig()


def test_every_field_of_the_configuration_can_be_reached() -> None:
    assert set(CHANGES) == set(inspect.signature(options.config_from_options).parameters)
    reached = {field for _, expected in CHANGES.values() for field in expected}
    assert reached == {field.name for field in dataclasses.fields(QuantConfig)}


@pytest.mark.parametrize(
    ("options_given", "message"),
    [
        ({"weight_bits": 1}, "weights is 1"),
        ({"activation_bits": 16}, "activations is 16"),
        ({"weight_bits": 32, "activation_bits": 32}, "nothing to quantize"),
        ({"first_last": "eight"}, "'eight'"),
        ({"rules": ["layer4.*"]}, "gives no setting"),
        ({"rules": ["layer4.* w=9"]}, "is 9"),
        ({"rules": ["layer4.* x=4"]}, "'x=4'"),
        ({"blocks": ["stem"]}, "'stem'"),
        ({"blocks": ["stem= , "]}, "'stem= , '"),
        ({"blocks": ["a=x", "a=y"]}, "'a' twice"),
        ({"recipe": "slow"}, "'slow'"),
        ({"recipe_settings": ["speed=3"]}, "'speed'"),
        ({"recipe_settings": ["steps"]}, "gives no value"),
        ({"recipe_settings": ["steps=1.5"]}, "'1.5'; give a whole number"),
        ({"recipe_settings": ["warmup=some"]}, "'some'; give a number"),
        ({"recipe_settings": ["warmup=nan"]}, "warmup is nan"),
        ({"recipe_settings": ["joint=maybe"]}, "'maybe'; give true or false"),
        ({"recipe_settings": ["loss=l1"]}, "'l1'; give plain or fisher"),
        ({"recipe_settings": ["beta=20"]}, "'20'; give 2 numbers"),
        ({"recipe_settings": ["steps=5"], "steps": 6}, "steps is set twice"),
        ({"recipe_settings": ["qdrop=0", "qdrop=1"]}, "qdrop is set twice"),
        ({"steps": 0}, "steps is 0"),
        ({"qdrop": 1.5}, "qdrop is 1.5"),
        ({"recipe_settings": ["held_out=0.6"]}, "held_out is 0.6"),
        ({"memory_budget": "lots"}, "'lots'"),
    ],
)
def test_what_cannot_be_read_is_named(options_given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options.config_from_options(**options_given)
    assert message in str(caught.value)


def test_preprocessing_changes_hold_only_what_was_given() -> None:
    assert options.preprocessing_changes() == {}
    assert options.preprocessing_changes(
        mean="0.5,0.4,0.3", std="1", size="32,16", resize="none", interpolation="nearest", color="BGR"
    ) == {
        "mean": (0.5, 0.4, 0.3), "std": (1.0,), "size": (32, 16), "resize": None, "interpolation": "nearest",
        "color": "BGR",
    }  # fmt: skip
    assert options.preprocessing_changes(size="224") == {"size": (224, 224)}
    assert options.preprocessing_changes(resize="256") == {"resize": 256}
    assert options.preprocessing_changes(resize="256,192") == {"resize": (256, 192)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mean", "a,b"),
        ("mean", ""),
        ("std", "0.5;0.5"),
        ("size", "0"),
        ("size", "224x"),
        ("size", "1,2,3"),
        ("resize", "-1"),
    ],
)
def test_preprocessing_that_cannot_be_read(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name}"):
        options.preprocessing_changes(**{name: text})
