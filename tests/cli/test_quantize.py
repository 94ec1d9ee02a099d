"""`brecq quantize` up to the work itself: each option arrives, bad requests are refused before it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from torch import nn
from typer.testing import Result

from brecq.cli import app, options
from brecq.cli.calibration import how_many
from brecq.cli.job import SAMPLES
from brecq.config import LayerRule, QuantConfig, Recipe
from brecq.errors import ConfigError, DataError
from brecq.sources import Source
from brecq.synthesis.config import DistillConfig

command = importlib.import_module("brecq.cli.quantize")
Invoke = Callable[..., Result]

REQUIRED = {"spec", "calib", "output"}
LOG = {"log_json"}  # of the output, not of the job that is done there: tested end to end


# parameter of the command: arguments, and the field of the job that they must change, as NAME or GROUP.NAME
OPTIONS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "weight_bits": (["-w", "2"], {"config.weights": 2}),
    "activation_bits": (["-a", "32"], {"config.activations": 32}),
    "bits_from": (["--bits-from", "search"], {"bits_from": Path("search")}),
    "first_last": (["--first-last", "none"], {"config.first_last": None}),
    "first_last_outputs": (
        ["-a", "4", "--no-first-last-outputs"],
        {"config.activations": 4, "config.first_last_outputs": False},
    ),
    "placement": (["--placement", "input"], {"config.placement": "input"}),
    "weight_scheme": (["--weight-scheme", "symmetric"], {"config.weight_scheme": "symmetric"}),
    "activation_scheme": (["--activation-scheme", "symmetric"], {"config.activation_scheme": "symmetric"}),
    "target": (["--target", "openvino"], {"config.target": "openvino"}),
    "set": (
        ["--set", "layer4.*", "w=8", "--set", "head", "float"],
        {"config.rules": (LayerRule("layer4.*", weights=8), LayerRule("head", weights=32, activations=32))},
    ),
    "granularity": (["--granularity", "net"], {"config.granularity": "net"}),
    "block": (
        ["--block", "stem=conv1,bn1", "--block", "b=x"],
        {"config.blocks": {"stem": ["conv1", "bn1"], "b": ["x"]}},
    ),
    "method": (["--method", "rtn"], {"config.method": "rtn"}),
    "recipe": (["--recipe", "thorough"], {"config.recipe": Recipe.preset("thorough")}),
    "recipe_set": (
        ["--recipe-set", "warmup=0.1", "--recipe-set", "beta=9,3"],
        {"config.recipe": Recipe(warmup=0.1, beta=(9.0, 3.0))},
    ),
    "steps": (["--steps", "5"], {"config.recipe": Recipe(steps=5)}),
    "batch_size": (["--batch-size", "5"], {"config.recipe": Recipe(batch_size=5)}),
    "qdrop": (["--qdrop", "0"], {"config.recipe": Recipe(qdrop=0.0)}),
    "loss": (["--loss", "fisher"], {"config.recipe": Recipe(loss="fisher")}),
    "autocast": (["--autocast", "bf16"], {"config.autocast": "bf16"}),
    "memory_budget": (["--memory-budget", "2MiB"], {"config.memory_budget": 2**21}),
    "class_axis": (["--class-axis", "-1"], {"config.class_axis": -1}),
    "auto_high_precision": (["--auto-high-precision"], {"config.auto_high_precision": True}),
    "outputs": (
        ["--outputs", "values", "--loss", "fisher"],
        {"config.outputs": "values", "config.recipe": Recipe(loss="fisher")},
    ),
    "seed": (["--seed", "9"], {"config.seed": 9}),
    "weights": (["--weights", "w.safetensors"], {"checkpoint.weights": Path("w.safetensors")}),
    "trust_pickle": (["--trust-pickle"], {"checkpoint.trust_pickle": True}),
    "submodule": (["--submodule", "backbone"], {"submodules": ("backbone",)}),
    "calib_size": (["--calib-size", "64"], {"calibration.calib_size": 64}),
    "max_skipped": (["--max-skipped", "0.2"], {"calibration.max_skipped": 0.2}),
    "distill_preset": (
        ["--calib", "distilled", "--distill-preset", "full"],
        {"calibration.calib": Path("distilled"), "distillation": DistillConfig.preset("full")},
    ),
    "distill_set": (
        ["--calib", "distilled", "--distill-set", "steps=9", "--distill-set", "swing=false"],
        {"calibration.calib": Path("distilled"), "distillation": DistillConfig(steps=9, swing=False)},
    ),
    "eval": (["--eval", "val"], {"evaluation.eval": Path("val")}),
    "eval_labels": (["--eval-labels", "l.csv"], {"evaluation.eval_labels": Path("l.csv")}),
    "eval_size": (["--eval-size", "10"], {"evaluation.eval_size": 10}),
    "mean": (["--mean", "0.1,0.2,0.3"], {"changes.mean": (0.1, 0.2, 0.3)}),
    "std": (["--std", "0.1,0.2,0.3"], {"changes.std": (0.1, 0.2, 0.3)}),
    "size": (["--size", "96"], {"changes.size": (96, 96)}),
    "resize": (["--resize", "128"], {"changes.resize": "128"}),
    "interpolation": (["--interpolation", "bicubic"], {"changes.interpolation": "bicubic"}),
    "color": (["--color", "BGR"], {"changes.color": "BGR"}),
    "fit": (["--fit", "letterbox"], {"changes.fit": "letterbox"}),
    "fill": (["--fill", "0.5"], {"changes.fill": (0.5,)}),
    "pad_multiple": (["--pad-multiple", "32"], {"changes.multiple": 32}),
    "task": (["--task", "detection"], {"judged.task": "detection"}),
    "metric": (["--metric", "m.py:psnr"], {"judged.metric": "m.py:psnr"}),
    "decode": (
        ["--task", "segmentation", "--decode", "d.py:f"],
        {"judged.task": "segmentation", "judged.decode": "d.py:f"},
    ),
    "tokenizer": (["--task", "language", "--tokenizer", "t"], {"judged.task": "language", "judged.tokenizer": "t"}),
    "tokens": (["--task", "language", "--tokens", "64"], {"judged.task": "language", "judged.tokens": 64}),
    "resume": (["--resume"], {"output.resume": True}),
    "force": (["--force"], {"output.force": True}),
    "device": (["--device", "cuda:1"], {"machine.device": "cuda:1"}),
    "threads": (["--threads", "3"], {"machine.threads": 3}),
}


def make_job(calib: Path = Path("calib"), output: Path = Path("out"), **changes: Any) -> Any:
    """The job of `brecq quantize timm:resnet18 --calib calib -o out`, with changes by NAME or GROUP.NAME."""
    made = command.Job(
        spec="timm:resnet18", calibration=command.Calibration(calib=calib), evaluation=command.Evaluated(),
        config=QuantConfig(), bits_from=None, changes=options.Changes(), checkpoint=options.Checkpoint(),
        submodules=(), output=options.Output(output=output), machine=options.Machine(),
        judged=command.Judged(),
    )  # fmt: skip
    return changed(made, changes)


def changed(job: Any, changes: dict[str, Any]) -> Any:
    for name, value in changes.items():
        group, _, field = name.partition(".")
        value = dataclasses.replace(getattr(job, group), **{field: value}) if field else value
        job = dataclasses.replace(job, **{group: value})
    return job


@pytest.fixture
def job_of(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The job that these arguments ask for, without doing it."""

    def ask(*arguments: str) -> Any:
        jobs: list[Any] = []
        monkeypatch.setattr(command, "run", lambda job, console: jobs.append(job))
        result = invoke("quantize", "timm:resnet18", "--calib", "calib", "-o", "out", *arguments)
        assert result.exit_code == 0, result.output
        return jobs[0]

    return ask


def test_defaults(job_of: Callable[..., Any]) -> None:
    assert job_of() == make_job()


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_changes_its_part_of_the_job(job_of: Callable[..., Any], name: str) -> None:
    arguments, expected = OPTIONS[name]
    default = job_of()
    assert job_of(*arguments) == changed(default, expected)
    assert job_of(*arguments) != default


def source(**known: Any) -> Source:
    return Source("net", nn.Identity(), None, (), "net.py:build", **known)


@pytest.mark.parametrize(
    ("known", "changes", "task", "outputs", "samples"),
    [
        ({}, {}, None, "auto", 1024),
        ({"task": "detection"}, {}, "detection", "values", 64),
        ({"task": "detection"}, {"judged.metric": "m.py:f"}, None, "auto", 64),
        (
            {"task": "detection"},
            {"judged.task": "restoration", "calibration.calib_size": 7},
            "restoration",
            "values",
            7,
        ),
        ({}, {"judged.task": "detection", "config.outputs": "scores"}, "detection", "scores", 64),
    ],
)
def test_the_network_settles_its_task(
    known: dict[str, Any], changes: dict[str, Any], task: str | None, outputs: str, samples: int
) -> None:
    job = command.settled(make_job(**changes), source(**known))
    assert (job.judged.task, job.config.outputs) == (task, outputs)
    for usual, expected in ((SAMPLES, samples), (512, min(samples, 512))):  # of brecq search as of brecq quantize
        assert how_many(job.calibration.calib_size, usual, job.judged, source(**known)) == expected


@pytest.mark.parametrize(("known", "named"), [({"submodules": ("backbone", "head")}, ()), ({}, ("backbone", "head"))])
def test_searched_bits_are_refused_for_parts(known: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="backbone, head are"):
        command.settled(make_job(bits_from=Path("search"), submodules=named), source(**known))


def test_no_option_is_left_out() -> None:
    names = {parameter.name for parameter in typer.main.get_command(app).commands["quantize"].params}
    assert names - {"help"} == set(OPTIONS) | REQUIRED | LOG


@pytest.fixture
def job(tmp_path: Path) -> Any:
    """A job that passes every check."""
    (tmp_path / "calib").mkdir()
    return make_job(tmp_path / "calib", tmp_path / "new" / "out")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"calibration.calib": Path("missing")}, DataError, "--calib"),
        ({"bits_from": Path("missing")}, DataError, "--bits-from"),
        ({"evaluation.eval": Path("missing")}, DataError, "--eval"),
        ({"evaluation.eval": Path(), "evaluation.eval_labels": Path("missing")}, DataError, "--eval-labels"),
        ({"checkpoint.weights": Path("missing")}, DataError, "--weights"),
        ({"evaluation.eval_labels": Path("l.csv")}, ConfigError, "give --eval"),
        ({"evaluation.eval_size": 3}, ConfigError, "give --eval"),
    ],
)
def test_bad_requests_are_refused(job: Any, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        command.check_job(changed(job, changes))
    assert not job.output.output.exists()


@pytest.mark.parametrize("spec", ["hf:no/such-model-here", "{file}:nothing", "{file}:build"])
def test_a_failure_before_the_first_write_leaves_nothing(
    invoke: Callable[..., Any], network_file: Path, tmp_path: Path, spec: str
) -> None:
    data = tmp_path / "calibration.npz"
    np.savez(data, x=np.zeros((4, 7), "float32"))  # no images: the network does not take them
    result = invoke("quantize", spec.format(file=network_file), "--calib", data, "-o", tmp_path / "new" / "out")
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "new").exists()
