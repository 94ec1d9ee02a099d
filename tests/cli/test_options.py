"""From the text of the command line to configurations."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import brecq
from brecq.cli import PairsCommand, options
from brecq.cli import app as brecq_app
from brecq.cli.command import command
from brecq.cli.vain import refuse_vain
from brecq.config import LayerRule, QuantConfig, Recipe
from brecq.data.preprocessing import Preprocessing
from brecq.deploy.options import BenchmarkConfig, Tolerance
from brecq.errors import ConfigError
from brecq.precision.hardware.profile import measure_latency
from brecq.precision.options import ProfileConfig, SearchConfig, SurveyConfig
from brecq.settings import setting_of, types_of
from brecq.synthesis.config import DistillConfig

CONFIGS = (QuantConfig, Recipe, DistillConfig, SurveyConfig, SearchConfig, BenchmarkConfig, Tolerance, ProfileConfig)

OF_GENERATORS = "--distill-set latent=generator --distill-set start=noise"

# of every field: the arguments that change it, and its new value
CHANGES: dict[type, dict[str, tuple[str, Any]]] = {
    QuantConfig: {
        "weights": ("-w 2", 2),
        "activations": ("-a 4", 4),
        "first_last": ("--first-last none", None),
        "first_last_outputs": ("--no-first-last-outputs", False),
        "placement": ("--placement input", "input"),
        "weight_scheme": ("--weight-scheme symmetric", "symmetric"),
        "activation_scheme": ("--activation-scheme asymmetric", "asymmetric"),
        "target": ("--target tensorrt", "tensorrt"),
        "rules": ("--set layer4.* w=8", (LayerRule("layer4.*", weights=8),)),
        "granularity": ("--granularity stage", "stage"),
        "blocks": ("--block stem=conv1,layer1.*", {"stem": ["conv1", "layer1.*"]}),
        "method": ("--method rtn", "rtn"),
        "recipe": ("--recipe paper", Recipe.preset("paper")),
        "autocast": ("--autocast bf16", "bf16"),
        "memory_budget": ("--memory-budget 4GB", 4_000_000_000),
        "class_axis": ("--class-axis -1", -1),
        "auto_high_precision": ("--auto-high-precision", True),
        "outputs": ("--outputs values", "values"),
        "seed": ("--seed 3", 3),
    },
    Recipe: {
        "name": ("--recipe-set name=mine", "mine"),
        "steps": ("--steps 50", 50),
        "batch_size": ("--batch-size 16", 16),
        "rounding_lr": ("--recipe-set rounding_lr=1e-2", 1e-2),
        "step_lr": ("--recipe-set step_lr=0.002", 2e-3),
        "joint": ("--recipe-set joint=false", False),
        "activation_steps": ("--recipe-set activation_steps=25 --recipe-set joint=false", 25),
        "activation_norm": ("--recipe-set activation_norm=2.4 --recipe-set joint=false", 2.4),
        "activation_inputs": ("--recipe-set activation_inputs=float --recipe-set joint=false", "float"),
        "step_schedule": ("--recipe-set step_schedule=cosine", "cosine"),
        "first_layer": ("--recipe-set first_layer=no", False),
        "step_space": ("--recipe-set step_space=linear", "linear"),
        "bias_lr": ("--recipe-set bias_lr=0.05", 0.05),
        "qdrop": ("--qdrop 0", 0.0),
        "loss": ("--loss fisher", "fisher"),
        "fisher_labels": ("--recipe-set fisher_labels=given", "given"),
        "normalize_loss": ("--recipe-set normalize_loss=no", False),
        "rounding_penalty": ("--recipe-set rounding_penalty=0.01", 0.01),
        "beta": ("--recipe-set beta=10,3", (10.0, 3.0)),
        "warmup": ("--recipe-set warmup=0.5", 0.5),
        "keep_best": ("--recipe-set keep_best=0", False),
        "held_out": ("--recipe-set held_out=0.25", 0.25),
        "tuning": ("--recipe-set tuning=2", 2.0),
        "tune_lr": ("--recipe-set tune_lr=0.1", 0.1),
        "tune_codes_lr": ("--recipe-set tune_codes_lr=0.01", 0.01),
        "tune_features": ("--recipe-set tune_features=0.5", 0.5),
        "compensate": ("--recipe-set compensate=no", False),
        "correction": ("--recipe-set correction=0.3", 0.3),
        "damping": ("--recipe-set damping=0.1", 0.1),
        "range_norm": ("--recipe-set range_norm=2", 2.0),
        "range_candidates": ("--recipe-set range_candidates=80", 80),
        "range_samples": ("--recipe-set range_samples=64", 64),
    },
    DistillConfig: {
        "steps": ("--distill-set steps=9", 9),
        "batch_size": ("--distill-set batch_size=9", 9),
        "latent": ("--distill-set latent=pixels", "pixels"),
        "start": ("--distill-set start=noise", "noise"),
        "lr": ("--distill-set lr=0.5", 0.5),
        "generator_lr": (
            f"--distill-set generator_lr=0.5 {OF_GENERATORS}",
            0.5,
        ),
        "generator_width": (
            f"--distill-set generator_width=9 {OF_GENERATORS}",
            9,
        ),
        "coarse": ("--distill-set coarse=0.5", 0.5),
        "input_weight": ("--distill-set input_weight=0.5", 0.5),
        "smoothness": ("--distill-set smoothness=0.5", 0.5),
        "target": ("--distill-set target=class", "class"),
        "target_weight": ("--distill-set target_weight=0.5 --distill-set target=class", 0.5),
        "swing": ("--distill-set swing=no", False),
        "shift": ("--distill-set shift=0", 0),
        "flip": ("--distill-set flip=no", False),
    },
    SurveyConfig: {
        "bits": ("--bits 8,2", (2, 8)),
        "activation_bits": ("--search-activations 4,8", (4, 8)),
        "quality": ("--quality reconstructed", "reconstructed"),
        "cross": ("--cross all", "all"),
        "draws": ("--draws 2", 2),
    },
    SearchConfig: {
        "algorithm": ("--algorithm genetic", "genetic"),
        "metric": ("--metric relative", "relative"),
        "seed": ("--seed 7", 7),
    },
    BenchmarkConfig: {
        "batches": ("--batch 3 --batch 5", (3, 5)),
        "runs": ("--runs 7", 7),
        "threads": ("--threads 2", 2),
        "seconds": ("--seconds 1.5", 1.5),
    },
    Tolerance: {
        "codes": ("--allow-codes 2", 2.0),
        "largest": ("--allow-largest 3", 3.0),
        "mean": ("--allow-mean 4", 4.0),
        "agreement": ("--agreement 90", 90.0),
    },
    ProfileConfig: {
        "repeats": ("--repeats 7", 7),
        "warmup": ("--warmup 0", 0),
        "threads": ("--threads 2", 2),
    },
}

# settings that some fields need beside them
STAGES, GENERATOR = {"joint": False}, {"latent": "generator", "start": "noise"}
BESIDE: dict[str, dict[str, Any]] = {
    "activation_steps": STAGES, "activation_norm": STAGES, "activation_inputs": STAGES,
    "generator_lr": GENERATOR, "generator_width": GENERATOR,
    "target_weight": {"target": "class"},
}  # fmt: skip

NOT_ON_THE_COMMAND_LINE = {
    (DistillConfig, "name"),  # says which preset it is
    (DistillConfig, "seed"),  # the run's
}


def made(kind: Any, *arguments: str) -> Any:
    """The configuration that the command line makes of the arguments."""
    found: list[Any] = []

    def one(config: Any) -> None:
        found.append(config)

    one.__annotations__["config"] = kind
    app = typer.Typer()
    app.command("one", cls=PairsCommand)(command(one))
    result = CliRunner().invoke(app, list(arguments))
    if result.exit_code:
        assert result.exception is not None
        raise result.exception
    return found[0]


def default(kind: Any) -> Any:
    return kind.preset("fast") if hasattr(kind, "presets") else kind()


@pytest.mark.parametrize("kind", CONFIGS)
def test_without_options_the_default_configuration_results(kind: type) -> None:
    assert made(kind) == default(kind)


@pytest.mark.parametrize("kind", [Recipe, DistillConfig])
def test_a_preset_that_may_be_left_out_is_none_without_options(kind: type) -> None:
    assert made(kind | None) is None
    assert made(kind | None, kind.presets.option, "fast") == default(kind)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in CHANGES.items() for name in names])
def test_each_option_changes_its_field_and_no_other(kind: type, name: str) -> None:
    arguments, value = CHANGES[kind][name]
    expected = {**BESIDE.get(name, {}), name: value}
    if hasattr(kind, "presets"):
        expected = {"name": "custom", **expected}
    found = made(kind, *arguments.split())
    assert found == dataclasses.replace(kind(), **expected) != kind()
    assert type(getattr(found, name)) is type(value)


def test_every_field_of_every_configuration_can_be_reached() -> None:
    fields = {(kind, field.name) for kind in CONFIGS for field in dataclasses.fields(kind)}
    assert fields - NOT_ON_THE_COMMAND_LINE == {(kind, name) for kind, names in CHANGES.items() for name in names}


def test_every_field_says_what_it_means_and_the_docstring_repeats_it() -> None:
    for kind in CONFIGS:
        for field in dataclasses.fields(kind):
            known = setting_of(field)
            assert known is not None
            assert known.help
            assert known.help in (kind.__doc__ or "")


def commands() -> dict[str, dict[str, Any]]:
    """Every option of every command, by its name in Python."""
    found = typer.main.get_command(brecq_app).commands  # type: ignore[attr-defined]
    return {name: {str(option.name): option for option in each.params} for name, each in found.items()}


# arguments of the public functions that are no options, and why
NO_OPTION = {
    "quantize": {
        "model", "calibration", "config", "allocation",  # MODEL, --calib, options of their own, --bits-from
        "learned", "run_dir",  # beside --bits-from, -o
        "progress",
        "quantizer",  # an object of PT2E
        "submodules",  # --submodule, repeated
    },
    "evaluate": {"model", "data", "reference", "class_axis"},  # RESULT, --data, --model, the result's
    "export": {"result", "path"},  # RESULT, -o
    "verify": {"result", "path", "data", "tolerance"},  # options of its own
    "benchmark": {"result", "path"},
    "inspect": {"model", "example_inputs", "config", "quantizer", "submodules"},
    "distill": {"model", "config", "preprocessing", "shape", "run_dir", "progress"},
    "search": {"table", "budgets", "cross"},  # SEARCH, --budget; the cross terms that the table has always count
    "measure_sensitivity": {"model", "calibration", "config", "check", "run_dir", "progress"},
    "measure_latency": {"model", "example_inputs", "progress"},
}  # fmt: skip
SPELLED = {"activation_bits": "search_activations", "batches": "batch"}
COMMAND = {"measure_sensitivity": "search", "measure_latency": "profile"}


@pytest.mark.parametrize("name", NO_OPTION)
def test_the_library_and_the_command_line_have_the_same_arguments_and_defaults(name: str) -> None:
    function = measure_latency if name == "measure_latency" else getattr(brecq, name)
    known = commands()[COMMAND.get(name, name)]
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in NO_OPTION[name] or parameter.kind is parameter.VAR_KEYWORD:
            continue
        option = known[SPELLED.get(parameter.name, parameter.name)]
        if parameter.default is not parameter.empty and not isinstance(parameter.default, tuple):
            assert option.default == parameter.default, parameter.name
    defaults = {"search": SearchConfig, "measure_sensitivity": SurveyConfig, "benchmark": BenchmarkConfig}
    for field in dataclasses.fields(defaults.get(name, ProfileConfig)):
        if field.name in inspect.signature(function).parameters:
            assert inspect.signature(function).parameters[field.name].default == field.default


def test_preprocessing_has_an_option_for_each_field() -> None:
    assert {f.name for f in dataclasses.fields(options.Changes)} == {f.name for f in dataclasses.fields(Preprocessing)}
    for name in ("interpolation", "color"):
        assert types_of(options.Changes)[name] == types_of(Preprocessing)[name] | None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-w 1", "weights is 1"),
        ("-a 12", "activations is 12"),
        ("-w 32 -a 32", "nothing to quantize"),
        ("--first-last eight", "'eight'"),
        ("--set layer4.*", "gives no setting"),
        ("--set layer4.* w=9", "is 9"),
        ("--set layer4.* x=4", "'x=4'"),
        ("--block stem", "'stem'"),
        ("--block stem=,", "'stem=,'"),
        ("--block a=x --block a=y", "'a' twice"),
        ("--recipe slow", "'slow'"),
        ("--recipe-set speed=3", "'speed'"),
        ("--recipe-set steps", "gives no value"),
        ("--recipe-set steps=1.5", "'1.5'; give a whole number"),
        ("--recipe-set warmup=some", "'some'; give a number"),
        ("--recipe-set warmup=nan", "warmup is nan"),
        ("--recipe-set rounding_lr=inf", "rounding_lr is inf"),
        ("--recipe-set tuning=inf", "tuning is inf; it must be between 0 and 1000"),
        ("--recipe-set joint=maybe", "'maybe'; give true or false"),
        ("--recipe-set loss=l1", "'l1'; give plain or fisher"),
        ("--recipe-set beta=20", "'20'; give 2 numbers"),
        ("--recipe-set steps=5 --steps 6", "steps is set twice"),
        ("--recipe-set qdrop=0 --recipe-set qdrop=1", "qdrop is set twice"),
        ("--steps -1", "steps is -1"),
        ("--qdrop 1.5", "qdrop is 1.5"),
        ("--recipe-set held_out=0.6", "held_out is 0.6"),
        ("--memory-budget lots", "--memory-budget is 'lots'"),
        ("--seed -1", "seed is -1"),
        ("--seed 18446744073709551616", "seed is 18446744073709551616; it must be at most 18446744073709551615"),
    ],
)
def test_what_cannot_be_read_is_named(arguments: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(QuantConfig, *arguments.split())
    assert message in str(caught.value)


def test_a_changed_preset_is_called_custom_and_an_unchanged_one_keeps_its_name() -> None:
    assert made(Recipe, "--recipe", "paper") == Recipe.preset("paper")
    changed = made(Recipe, "--recipe", "paper", "--recipe-set", "steps=10")
    assert changed == dataclasses.replace(Recipe.preset("paper"), steps=10, name="custom")


def test_preprocessing_changes_hold_only_what_was_given() -> None:
    assert made(options.Changes).given() == {}
    assert made(
        options.Changes, "--mean", "0.5,0.4,0.3", "--std", "1", "--size", "32,16", "--resize", "none",
        "--interpolation", "nearest", "--color", "BGR",
    ).given() == {
        "mean": (0.5, 0.4, 0.3), "std": (1.0,), "size": (32, 16), "resize": None, "interpolation": "nearest",
        "color": "BGR",
    }  # fmt: skip
    assert made(options.Changes, "--size", "224").given() == {"size": (224, 224)}
    assert made(options.Changes, "--resize", "256").given() == {"resize": 256}
    assert made(options.Changes, "--resize", "256,192").given() == {"resize": (256, 192)}


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
        made(options.Changes, f"--{name}={text}")


VAIN = {
    "--method rtn --steps 5": "--steps would do nothing: rounding to nearest",
    "--method rtn --recipe thorough": "--recipe would do nothing",
    "--method rtn --recipe-set qdrop=0": "--recipe-set qdrop=0 would do nothing",
    "--method rtn --autocast bf16": "--autocast would do nothing",
    "--recipe instant --batch-size 8": "--batch-size would do nothing: a recipe of 0 steps",
    "--recipe-set tuning=0 --recipe-set tune_lr=0.1": "there is no end-to-end tuning",
    "--recipe-set compensate=no --recipe-set damping=0.1": "there is no closed form",
    "-a 32 --recipe-set compensate=no --recipe-set range_samples=8": "nothing is computed in closed form",
    "--recipe-set fisher_labels=given": "the loss is plain",
    "--outputs values": "--outputs would do nothing: the loss is plain",
    "--no-first-last-outputs": "--no-first-last-outputs would do nothing: activations have as many bits",
    "-a 4 --first-last none --first-last-outputs": "--first-last-outputs would do nothing",
    "-a 32 --qdrop 0.2": "--qdrop would do nothing: activations stay in float",
    "-a 32 --placement input": "--placement would do nothing",
    "-w 32 --weight-scheme symmetric": "--weight-scheme would do nothing: weights stay in float",
    "--recipe-set rounding_penalty=0 --recipe-set warmup=0.3": "there is no regularizer",
}
IN_USE = (
    "--method rtn --recipe-set range_norm=2", "--recipe instant --recipe-set damping=0.1",
    "-a 8 --recipe-set damping=0.1", "-a 4 --recipe-set correction=1",
    "-a 32 --set x a=8 --qdrop 0",
    "-a 32 --recipe-set range_samples=8",
    "--loss fisher --outputs values", "--recipe paper --recipe-set activation_steps=3", "--recipe-set tuning=0",
)  # fmt: skip


@pytest.mark.parametrize("arguments", [*VAIN, *IN_USE])
def test_options_that_would_do_nothing_are_refused(arguments: str) -> None:
    def one(ctx: typer.Context, config: QuantConfig) -> None:
        refuse_vain(ctx, config)

    one.__annotations__ |= {"ctx": typer.Context, "config": QuantConfig}
    app = typer.Typer()
    app.command("one", cls=PairsCommand)(command(one))
    result = CliRunner().invoke(app, arguments.split())
    if arguments in IN_USE:
        assert result.exit_code == 0, result.exception
    else:
        assert isinstance(result.exception, ConfigError)
        assert VAIN[arguments] in str(result.exception)
