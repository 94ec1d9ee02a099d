"""Every setting of a quantization does what it says: what it must change differs, what it must leave is the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import brecq
from brecq import LayerRule, QuantConfig, QuantResult, Recipe
from brecq.capture.export import capture
from brecq.checkpoint.tensors import PackedWeight, collect_tensors
from brecq.converted.grids import grid_of
from brecq.converted.layers import quantized_activations
from brecq.data.dataset import Dataset
from brecq.effects import IDLE, without_effect
from brecq.errors import ConfigError
from brecq.plain import build

QUICK = {
    "steps": 8, "batch_size": 8, "rounding_lr": 0.3, "range_candidates": 12, "range_samples": 16, "tuning": 0.0,
    "compensate": False,
}  # fmt: skip
FISHER, STAGES = {"loss": "fisher"}, {"joint": False, "activation_steps": 2}
TUNED = {"tuning": 1.0, "tune_codes_lr": 0.0}
FEW = {"weights": 3, "activations": 4, "first_last_outputs": False}
LAST, NEAREST = {"keep_best": False}, {"method": "rtn"}


class Net(nn.Module):
    """Six layers in two stages; scores [N, 4], or `dense` ones [N, 64, 4].

    `uneven`: a channel of one tensor is thousands of times the others, undone by the layer that reads it.
    """

    def __init__(self, dense: bool = False, uneven: bool = False) -> None:
        super().__init__()
        self.dense = dense
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, groups=2) for _ in range(2))
        self.second = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(2))
        self.head = nn.Linear(6, 4)
        if uneven:
            with torch.no_grad():
                self.second[0].weight[0] *= 3000
                self.second[1].weight[:, 0] /= 3000

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for stage in (self.first, self.second):
            x = (x + stage[1](stage[0](x).relu())).relu()
        return self.head(x.flatten(2).mT if self.dense else x.mean((2, 3)))


@dataclass(frozen=True)
class Row:
    """`changes` on top of `base` change every one of `differs` and nothing of `same` (names of `facts`)."""

    changes: dict[str, Any]
    differs: str
    same: str = ""
    base: dict[str, Any] = field(default_factory=dict)


ROWS = {
    # the recipe
    "compensate": Row({"compensate": True}, "codes scales biases", "nearest steps"),
    "correction": Row({"correction": 0.0}, "codes biases", "nearest steps", {"compensate": True}),
    "damping": Row({"damping": 10.0}, "codes scales biases", "nearest steps", {"compensate": True}),
    "steps": Row({"steps": 12}, "steps codes activations", "nearest"),
    "batch_size": Row({"batch_size": 12}, "codes activations", "nearest steps"),
    "rounding_lr": Row({"rounding_lr": 0.01}, "codes", "nearest steps", LAST),
    "step_lr": Row({"step_lr": 0.1}, "activations", "nearest steps"),
    "joint": Row({"joint": False, "activation_steps": 3}, "stages codes", "scope"),
    "activation_steps": Row({"activation_steps": 4}, "steps activations", "codes", STAGES),
    "activation_norm": Row({"activation_norm": 2.4}, "activations", "codes steps", STAGES),
    "activation_inputs": Row({"activation_inputs": "float"}, "activations", "codes steps", STAGES),
    "step_schedule": Row({"step_schedule": "cosine"}, "activations", "nearest steps"),
    "first_layer": Row({"first_layer": False}, "steps codes activations", "nearest stages", {"first_last": None}),
    "step_space": Row({"step_space": "linear"}, "activations", "nearest steps"),
    "bias_lr": Row({"bias_lr": 0.0}, "biases", "nearest steps"),
    "qdrop": Row({"qdrop": 0.0}, "codes activations", "nearest steps"),
    "loss": Row(FISHER, "codes forwards", "nearest steps"),
    "fisher_labels": Row({"fisher_labels": "given"}, "codes", "nearest steps forwards", FISHER),
    "normalize_loss": Row({"normalize_loss": False}, "codes", "nearest steps"),
    "rounding_penalty": Row({"rounding_penalty": 0.0}, "codes", "nearest steps", LAST),
    "beta": Row({"beta": (3.0, 2.0)}, "codes", "nearest steps", LAST),
    "warmup": Row({"warmup": 0.9}, "codes", "nearest steps", LAST),
    "keep_best": Row({"keep_best": False}, "codes after", "nearest steps", {"rounding_lr": 30.0}),
    "held_out": Row({"held_out": 0.25}, "nearest after", "steps"),
    "tuning": Row(TUNED, "stages activations", "codes", {"steps": 24}),
    "tune_lr": Row({"tune_lr": 1e-4}, "activations", "codes stages", {**TUNED, "steps": 24}),
    "tune_codes_lr": Row(
        {"tune_codes_lr": 0.5},
        "codes",
        "stages",
        {"tuning": 20.0, "tune_lr": 0.0, "rounding_lr": 0.0, "held_out": 0.0, "weights": 2},
    ),
    "tune_features": Row(
        {"tune_features": 0.0}, "activations", "codes stages", {**TUNED, "tuning": 4.0, "rounding_lr": 0.0}
    ),
    "range_norm": Row({"range_norm": 1.5}, "scales activations", "stages", NEAREST),
    "range_candidates": Row({"range_candidates": 40}, "scales activations", "stages", NEAREST),
    "range_samples": Row({"range_samples": 24}, "activations", "scales codes", NEAREST),
    # what is quantized
    "weights": Row({"weights": 4}, "scope codes scales", "stages", NEAREST),
    "activations": Row({"activations": 6}, "scope activations", "codes scales", NEAREST),
    "first_last": Row({"first_last": None}, "scope codes scales activations", "stages", NEAREST),
    "first_last_outputs": Row({"first_last_outputs": True}, "scope activations", "codes scales", NEAREST),
    "placement": Row({"placement": "input"}, "scope activations", "scales", NEAREST),
    "weight_scheme": Row({"weight_scheme": "symmetric"}, "scope codes scales", "stages", NEAREST),
    "activation_scheme": Row({"activation_scheme": "symmetric"}, "scope activations", "codes scales", NEAREST),
    "target": Row({"target": "qualcomm"}, "scope activations", "stages", NEAREST),
    "rules": Row({"rules": (LayerRule("first.0", weights=8),)}, "scope codes scales", "stages", NEAREST),
    "granularity": Row({"granularity": "layer"}, "blocks codes", "scope"),
    "blocks": Row({"blocks": {"both": ["first.*", "second.*"]}}, "blocks codes", ""),
    "method": Row(NEAREST, "stages codes", "nearest"),
    "recipe": Row({"recipe": "paper"}, "stages codes"),
    "autocast": Row({"autocast": "bf16"}, "activations", "steps scope"),
    "memory_budget": Row({"memory_budget": 600_000_000}, "", "codes scales activations biases nearest after steps"),
    "class_axis": Row({"class_axis": 1}, "codes", "nearest steps", {**FISHER, "dense": True}),
    "auto_high_precision": Row(
        {"auto_high_precision": True}, "scope activations", "scales", {**NEAREST, "activations": 8, "uneven": True}
    ),
    "outputs": Row({"outputs": "values"}, "codes", "nearest steps", FISHER),
    "seed": Row({"seed": 1}, "codes activations", "steps scope"),
}
OWN = {each.name for each in fields(QuantConfig)}
FIELDS = {each.name for each in fields(Recipe)}
SAMPLES = 32


def facts(result: QuantResult) -> dict[str, Any]:
    """What can differ between two results."""
    stored = collect_tensors(result.converted)
    packed = {name: value for name, value in stored.items() if isinstance(value, PackedWeight)}
    report = result.report
    return {
        "codes": {name: value.codes() for name, value in packed.items()},
        "scales": {name: (value.scale, value.zero_point) for name, value in packed.items()},
        "biases": {n: v if isinstance(v, Tensor) else v.dequantize() for n, v in stored.items() if n.endswith("bias")},
        "activations": [grid_of(node) for node in quantized_activations(result.converted)],
        "scope": [(entry.layer, entry.weights, entry.inputs, entry.output) for entry in report.scope],
        "blocks": [(block.name, block.layers) for block in report.blocks],
        "stages": [block.stage for block in report.blocks],
        "steps": [block.steps for block in report.blocks],
        "nearest": report.blocks[0].error_before,
        "after": [block.error_after for block in report.blocks],
        "forwards": report.block_forwards,
    }


def equal(a: Any, b: Any) -> bool:
    (first, shape), (second, other) = tree_flatten(a), tree_flatten(b)
    return shape == other and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(first, second, strict=True)
    )


@pytest.fixture(scope="module")
def run() -> Callable[..., dict[str, Any]]:
    """`run(weights=4, steps=8)`: facts of a network that is captured once; equal calls are run once."""
    torch.manual_seed(0)
    x, labels = torch.randn(SAMPLES, 3, 8, 8), torch.randint(4, (SAMPLES,))
    kinds = ((False, False), (True, False), (False, True))
    models = {kind: Net(*kind).eval() for kind in kinds}
    captured = {which: capture(model, (x[:2],)) for which, model in models.items()}

    def quantize(dense: bool = False, uneven: bool = False, **changes: Any) -> dict[str, Any]:
        own = {**FEW, **{key: changes.pop(key) for key in OWN & changes.keys()}}
        preset = Recipe.preset(own.pop("recipe", "fast"))
        data = Dataset((x,), None if dense else labels)
        recipe = preset.replace(**{**QUICK, "activation_steps": 0 if preset.joint else 4, **changes})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("brecq.steps.plan.capture", lambda *_, **__: copy.deepcopy(captured[dense, uneven]))
            return facts(brecq.quantize(models[dense, uneven], data, QuantConfig(**own, recipe=recipe)))

    known: dict[str, dict[str, Any]] = {}

    def run(**changes: Any) -> dict[str, Any]:
        key = repr(changes)
        if key not in known:
            known[key] = quantize(**changes)
        return known[key]

    return run


def test_every_setting_has_a_row() -> None:
    settings = OWN | {each.name for each in fields(Recipe)} - {"name"}
    assert set(ROWS) == settings
    assert all(name in row.changes for name, row in ROWS.items() if name not in ("method", "loss", "tuning"))


def test_nothing_changed_changes_nothing(run: Callable[..., dict[str, Any]]) -> None:
    assert equal(run(), run(name="another"))


@pytest.mark.parametrize("name", ROWS)
def test_every_setting_changes_what_it_says(run: Callable[..., dict[str, Any]], name: str) -> None:
    row = ROWS[name]
    first, second = run(**row.base), run(**{**row.base, **row.changes})
    found = {fact: equal(first[fact], second[fact]) for fact in first}
    assert not [fact for fact in row.differs.split() if found[fact]], "did not change"
    assert not [fact for fact in row.same.split() if not found[fact]], "changed"


SITUATIONS: tuple[dict[str, Any], ...] = (
    NEAREST, {"steps": 0}, {"steps": 0}, {"tuning": 0.0}, {"compensate": False}, {"loss": "plain"}, {"loss": "plain"},
    {"activation_steps": 0, "joint": False}, {"activations": 32, "joint": False},
    {"first_last": None}, {"activations": 16}, {"activations": 32, "compensate": False}, {"weights": 32},
    {"rounding_penalty": 0.0}, {"rounding_lr": 0.0}, {"joint": False, "activation_steps": 0},
)  # fmt: skip
"""For each line of `IDLE` the settings under which it holds."""


def config_of(**changes: Any) -> QuantConfig:
    own = {**FEW, **{key: changes.pop(key) for key in OWN & changes.keys()}}
    return QuantConfig(**own, recipe=Recipe.preset(own.pop("recipe", "fast")).replace(**changes))


@pytest.mark.parametrize(("number", "base"), enumerate(SITUATIONS))
def test_what_is_said_to_do_nothing_does_nothing(
    run: Callable[..., dict[str, Any]], number: int, base: dict[str, Any]
) -> None:
    idle = IDLE[number]
    assert len(IDLE) == len(SITUATIONS)
    assert idle.when(config_of(**base))
    assert not idle.when(config_of(compensate=True, loss="fisher", joint=False, activation_steps=4))
    changes = {key: value for name in idle.settings for key, value in ROWS[name].changes.items() if key != "method"}
    if "recipe" in changes:
        changes["recipe"] = "thorough"  # of `paper` the errors are measured on other samples
    first, second = run(**base), run(**{**changes, **base})
    assert not [fact for fact in first if not equal(first[fact], second[fact])]


UNSAID = {
    "memory_budget": "changes no result",
    "target": "not every target takes every width of this network",
    **dict.fromkeys(("class_axis", "outputs", "autocast", "auto_high_precision"), "depends on network and machine"),
    **dict.fromkeys(("tune_codes_lr", "range_samples"), "matters on networks that are not as small as this one"),
    **dict.fromkeys(("first_layer", "keep_best", "fisher_labels"), "decides about the closed form, too"),
}
"""Settings that may do nothing here without being said to."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if name not in UNSAID])
def test_what_does_nothing_is_said(run: Callable[..., dict[str, Any]], name: str) -> None:
    row = ROWS[name]
    silent = []
    for base in SITUATIONS:
        first, second = {**row.base, **base}, {**row.base, **row.changes, **base}
        known = without_effect(
            config_of(**{key: value for key, value in first.items() if key in OWN or key in FIELDS})
        )
        if first.get(name) != second.get(name) and name not in known and equal(run(**first), run(**second)):
            silent.append(base)
    assert not silent


@dataclass(frozen=True)
class Nested:
    """As sensitivity tables and allocations hold a configuration."""

    config: QuantConfig


@pytest.mark.parametrize(
    ("written", "read"), [(False, False), (True, True), ("auto", True), ("yes", True), ("no", False)]
)
def test_configurations_of_earlier_versions_are_read(written: object, read: bool) -> None:
    values = QuantConfig().to_dict()
    values["recipe"]["compensate"] = written
    assert QuantConfig.from_dict(values).recipe.compensate == read
    assert build(Nested, {"config": values}, "a table").config.recipe.compensate == read


def test_a_configuration_is_changed_by_names_that_it_has() -> None:
    config = QuantConfig(4, 8)
    assert config.replace(weights=2) == QuantConfig(2, 8)
    with pytest.raises(ConfigError, match="unknown configuration setting 'wieghts'; choose from activation_scheme"):
        config.replace(wieghts=2)
    with pytest.raises(ConfigError, match="weights"):
        config.replace(weights=64)
    with pytest.raises(ConfigError, match=r"recipe is 'instant'; give a Recipe, such as Recipe.preset\('instant'\)"):
        config.replace(recipe="instant")
