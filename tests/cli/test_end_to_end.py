"""The commands on a small real network and real image files, from quantization to evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import brecq
from brecq.cli import app
from brecq.page.record import Record
from brecq.sources import load_source

Invoke = Callable[..., Result]

QUICK = ("--calib-size", "16", "--steps", "12", "--batch-size", "4", "-w", "3", "-a", "8")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(scope="module")
def quantized(network_file: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved result, not to be changed."""
    out = tmp_path_factory.mktemp("quantized") / "out"
    arguments = ["quantize", f"{network_file}:build", "--calib", str(images), "-o", str(out), *QUICK]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple, dict]]:
    """What `brecq quantize` hands to the library, which then breaks off."""
    found: list[tuple[tuple, dict]] = []

    def interrupted(*arguments: object, **options: object) -> None:
        found.append((arguments, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(brecq, "quantize", interrupted)
    return found


def measure(invoke: Invoke, *arguments: object) -> dict[str, Any]:
    result = invoke("evaluate", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_quantize_tells_what_it_does_and_what_came_out(
    invoke: Invoke, network_file: Path, images: Path, labels: Path, out: Path
) -> None:
    result = invoke(
        "quantize", f"{network_file}:build", "--calib", images, "--eval", images, "--eval-labels", labels, "-o", out,
        "--log-json", out.parent / "log.jsonl", *QUICK,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "network" in text
    assert "mean 0.5 0.5 0.5" in text
    assert "16 samples of 3 × 16 × 16" in text
    assert "24 samples of 3 × 16 × 16" in text
    assert "Quantization scope" in text
    for block in ("stem", "body.0", "body.1", "head"):
        assert f"] {block}  error " in text
    table = text[text.index("Result on 24 samples") :].splitlines()
    assert table[2].split() == ["top-1", "top-5", "agreement", "SQNR"]
    assert table[3].split() == ["%", "%", "%", "dB", "weights", "time"]
    assert [line.split()[0] for line in table[5:8]] == ["float", "rounding", "reconstructed"]
    assert str(out) in text
    record = Record.load(out)
    assert [row.name for row in record.rows] == ["float", "rounding to nearest", "reconstructed"]
    assert f"{record.rows[2].metrics['top-1 %']:.2f}" == table[7].split()[1]
    assert (record.samples, record.compared, len(record.calibration)) == (24, 24, 16)
    page = (out / "report.html").read_text()
    assert "data:image/jpeg" in page
    assert "body.1.conv2" in page
    events = [json.loads(line) for line in (out.parent / "log.jsonl").read_text().splitlines()]
    done = [event["name"] for event in events if event["event"] == "block_done"]
    assert done[:4] == ["stem", "body.0", "body.1", "head"]
    told = {event["event"]: event for event in events}
    assert events[0]["event"] == "command"
    assert events[-1] == told["saved"]
    assert told["saved"]["folder"] == str(out)
    assert told["float"]["metrics"]["top-1 %"] == record.rows[0].metrics["top-1 %"]
    assert [row["name"] for row in told["result"]["rows"]] == [row.name for row in record.rows]
    assert told["result"]["rows"][2]["metrics"] == record.rows[2].metrics


def test_the_report_of_a_result_is_written_again(invoke: Invoke, quantized: Path, tmp_path: Path) -> None:
    result = invoke("report", quantized, "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "page.html").read_text() == (quantized / "report.html").read_text()


def test_results_are_compared(invoke: Invoke, quantized: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(quantized, other)
    page = tmp_path / "compare.html"
    assert invoke("compare", quantized, other, "-o", page).exit_code == 0
    assert "body.1.conv2" in page.read_text()
    assert "exists; replace it with --force" in invoke("compare", quantized, other, "-o", page).stderr
    assert "one result is nothing to compare" in invoke("compare", quantized).stderr


def test_rounding_to_nearest_alone(invoke: Invoke, network_file: Path, images: Path, out: Path) -> None:
    arguments = ("quantize", f"{network_file}:build", "--calib", images, "--calib-size", "16", "--method", "rtn")
    bare = invoke(*arguments, "-o", out / "bare")
    assert bare.exit_code == 0, bare.output
    table = bare.stdout[bare.stdout.index("\nResult") :]
    assert "weights" in table
    assert "agreement" not in table
    evaluated = invoke(*arguments, "-o", out / "evaluated", "--eval", images)
    assert evaluated.exit_code == 0, evaluated.output
    table = evaluated.stdout[evaluated.stdout.index("\nResult on 24 samples") :]
    assert "rounding to nearest" in table
    assert "agreement" in table
    assert "reconstructed" not in table


def test_the_saved_result_remembers_where_it_came_from(quantized: Path, network_file: Path) -> None:
    result = brecq.load(quantized)
    assert result.metadata["source"] == {"spec": f"{network_file}:build", "weights": None, "submodule": None}
    assert result.metadata["preprocessing"]["size"] == [16, 16]
    assert result.config.weights == 3
    assert result.config.recipe.steps == 12
    assert result.model(torch.rand(5, 3, 16, 16)).shape == (5, 10)


def test_what_is_handed_to_the_library(
    invoke: Invoke, network_file: Path, images: Path, out: Path, calls: list[tuple[tuple, dict]]
) -> None:
    start = ("quantize", f"{network_file}:build", "--calib", images, "-o", out, "--calib-size", "16")
    invoke(*start)
    (out / "blocks").mkdir(parents=True)
    (out / "blocks" / "run.json").write_text("{}")  # as if blocks had been finished
    invoke(*start, "--seed", "5", "--submodule", "body", "--resume")
    (_, first, config), options = calls[0]
    assert config == brecq.QuantConfig()
    assert (options["run_dir"], options["resume"], options["submodule"], options["device"]) == (
        out,
        False,
        None,
        "auto",
    )
    (_, second, config), options = calls[1]
    assert config == brecq.QuantConfig(seed=5)
    assert (options["run_dir"], options["resume"], options["submodule"]) == (out, True, "body")
    assert len(first) == len(second) == 16
    assert first.digest() != second.digest()


def test_a_finished_run_is_neither_overwritten_nor_mixed_up(
    invoke: Invoke, quantized: Path, network_file: Path, images: Path, out: Path
) -> None:
    shutil.copytree(quantized, out)
    again = ("quantize", f"{network_file}:build", "--calib", images, "-o", out, *QUICK)
    for more, message in (((), "--force"), (("--resume",), "is finished")):
        refused = invoke(*again, *more)
        assert refused.exit_code == 2
        assert message in refused.stderr
    assert invoke(*again, "--force", "-w", "5").exit_code == 0
    assert brecq.load(out).config.weights == 5


def test_evaluate_compares_with_the_named_float_model(
    invoke: Invoke, quantized: Path, network_file: Path, images: Path, labels: Path
) -> None:
    unlabeled = measure(invoke, quantized, "--data", images, "--model", f"{network_file}:build")
    assert unlabeled["samples"] == 24
    assert unlabeled["top1"] is None
    assert unlabeled["agreement"] > 0
    assert unlabeled["sqnr"] > 0
    labeled = measure(invoke, quantized, "--data", images, "--labels", labels)
    assert labeled["top1"] is not None
    assert labeled["agreement"] is None


def test_evaluate_prints_for_people(invoke: Invoke, quantized: Path, network_file: Path, images: Path) -> None:
    result = invoke("evaluate", quantized, "--data", images, "--model", f"{network_file}:build")
    assert result.exit_code == 0, result.output
    assert "mean 0.5 0.5 0.5" in result.stdout
    assert "agreement with float" in result.stdout


def test_every_option_of_evaluate_has_an_effect(
    invoke: Invoke, quantized: Path, network_file: Path, images: Path, tmp_path: Path
) -> None:
    model = ("--model", f"{network_file}:build")
    default = measure(invoke, quantized, "--data", images, *model)
    for change in (
        ["--mean", "0.9,0.1,0.5"], ["--std", "0.1,0.2,0.3"], ["--resize", "20"], ["--interpolation", "nearest"],
        ["--color", "BGR"],
    ):  # fmt: skip
        assert measure(invoke, quantized, "--data", images, *model, *change)["sqnr"] != default["sqnr"], change
    refused = invoke("evaluate", quantized, "--data", images, *model, "--size", "12")
    assert refused.exit_code == 2
    assert "[3, 12, 12]" in refused.stderr
    few = measure(invoke, quantized, "--data", images, *model, "--samples", "6", "--seed", "1")
    assert few["samples"] == 6
    assert few["sqnr"] != measure(invoke, quantized, "--data", images, *model, "--samples", "6", "--seed", "2")["sqnr"]

    state = load_source(f"{network_file}:build").model.state_dict()
    torch.save({**state, "head.weight": -state["head.weight"]}, tmp_path / "other.pt")
    other = measure(invoke, quantized, "--data", images, *model, "--weights", tmp_path / "other.pt")
    assert other["sqnr"] < default["sqnr"]


@pytest.mark.parametrize("command", ["quantize", "evaluate"])
def test_threads_and_device_are_checked_and_used(
    command: str,
    invoke: Invoke,
    quantized: Path,
    network_file: Path,
    images: Path,
    out: Path,
    calls: list[tuple[tuple, dict]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    arguments: list[object] = ["evaluate", quantized, "--data", images, "--model", f"{network_file}:build"]
    if command == "quantize":
        arguments = ["quantize", f"{network_file}:build", "--calib", images, "-o", out]
    invoke(*arguments, "--threads", "1")
    assert threads == [1]
    for wrong, message in ((["--device", "tpu9"], "'tpu9'"), (["--threads", "0"], "--threads is 0")):
        refused = invoke(*arguments, *wrong)
        assert refused.exit_code == 2
        assert message in refused.stderr
    if not torch.cuda.is_available():
        assert "CUDA devices" in invoke(*arguments, "--device", "cuda").stderr


def test_the_batch_size_of_an_evaluation(
    invoke: Invoke, quantized: Path, network_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    evaluate = brecq.evaluate
    monkeypatch.setattr(
        brecq, "evaluate", lambda *a, batch_size, **k: (sizes.append(batch_size), evaluate(*a, **k))[1]
    )
    measure(invoke, quantized, "--data", images, "--model", f"{network_file}:build", "--batch-size", "5")
    assert sizes == [5]


def test_a_quantized_submodule_is_evaluated_in_its_model(
    invoke: Invoke, network_file: Path, images: Path, labels: Path, out: Path
) -> None:
    arguments = ("quantize", f"{network_file}:build", "--calib", images, "--calib-size", "16", "--method", "rtn")
    result = invoke(*arguments, "--submodule", "body", "-w", "8", "-o", out)
    assert result.exit_code == 0, result.output
    found = measure(invoke, out, "--data", images, "--model", f"{network_file}:build")
    assert found["sqnr"] > 20
    for more in ((), ("--no-reference",)):
        refused = invoke("evaluate", out, "--data", images, "--labels", labels, *more)
        assert refused.exit_code == 2
        assert refused.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-reference"], "--labels"),
        ([], "--model"),
        (["--no-reference", "--model", "x.py:build"], "--no-reference"),
        (["--model", "missing.py:build"], "missing.py"),
        (["--labels", "missing.csv"], "--labels"),
    ],
)
def test_evaluations_that_cannot_be_made(
    invoke: Invoke, quantized: Path, images: Path, arguments: list[str], message: str
) -> None:
    result = invoke("evaluate", quantized, "--data", images, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_a_model_without_preprocessing_needs_one(invoke: Invoke, network_file: Path, images: Path, out: Path) -> None:
    start = ("quantize", f"{network_file}:plain", "--calib", images, "-o", out, *QUICK)
    without = invoke(*start)
    assert without.exit_code == 2
    assert without.stderr.startswith("error: ")
    half = invoke(*start, "--mean", "0.5,0.5,0.5")
    assert half.exit_code == 2
    assert "--std and --size" in half.stderr
    whole = invoke(*start, "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--size", "16")
    assert whole.exit_code == 0, whole.output


@pytest.mark.parametrize(
    ("calib", "message"), [("empty", "empty"), ("text", "notes.txt"), ("missing", "missing")], ids=str
)
def test_calibration_data_that_cannot_be_used(
    invoke: Invoke, network_file: Path, tmp_path: Path, out: Path, calib: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no picture")
    result = invoke("quantize", f"{network_file}:build", "--calib", tmp_path / calib, "-o", out)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr or str(tmp_path / calib) in result.stderr
    assert "Traceback" not in result.output


def test_an_interruption_tells_how_to_go_on(
    invoke: Invoke, network_file: Path, images: Path, out: Path, calls: list[tuple[tuple, dict]]
) -> None:
    result = invoke("quantize", f"{network_file}:build", "--calib", images, "-o", out, *QUICK)
    assert result.exit_code == 130
    assert "nothing was saved yet: repeat the command" in result.stdout  # with blocks behind it: tests/robustness


def test_evaluation_data_that_does_not_fit_is_found_before_the_run(
    invoke: Invoke, network_file: Path, images: Path, out: Path, tmp_path: Path, calls: list[tuple[tuple, dict]]
) -> None:
    np.savez(tmp_path / "grey.npz", x=np.zeros((4, 1, 16, 16), np.float32))
    result = invoke(
        "quantize", f"{network_file}:build", "--calib", images, "--eval", tmp_path / "grey.npz", "-o", out, *QUICK
    )
    assert result.exit_code == 2, result.output
    assert "error:" in result.stderr
    assert not calls
    assert not out.exists()


def test_a_class_axis_that_there_is_not_is_found_before_the_run(
    invoke: Invoke, network_file: Path, images: Path, out: Path, calls: list[tuple[tuple, dict]]
) -> None:
    result = invoke(
        "quantize",
        f"{network_file}:build",
        "--calib",
        images,
        "--eval",
        images,
        "--class-axis",
        "7",
        "-o",
        out,
        *QUICK,
    )
    assert result.exit_code == 2, result.output
    assert "class_axis is 7" in result.stderr
    assert not calls
