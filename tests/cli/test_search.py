"""`brecq search`, `brecq profile` and `brecq quantize --bits-from`, on a small network and image files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import brecq
from brecq.cli import app
from brecq.config import QuantConfig
from brecq.errors import CheckpointError
from brecq.precision.allocation import BitAllocation
from brecq.precision.meter import BlockMeter
from brecq.precision.table import SensitivityTable
from brecq.sources import Source
from brecq.storage.arrays import write_arrays

Invoke = Callable[..., Result]

BUDGET = ("--budget", "size=1.9KB")
ROUNDED = ("--method", "rtn", "--calib-size", "16")


@pytest.fixture(scope="module")
def searched(network_file: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a search, not to be changed, and what the command printed."""
    out = tmp_path_factory.mktemp("searched") / "search"
    arguments = ["search", f"{network_file}:build", "--calib", str(images), "--calib-size", "16", *BUDGET]
    arguments += ["--budget", "latency=1ms", "--hardware", "bitfusion", "--pareto", "5", "-o", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_a_search_shows_and_keeps_what_it_found(searched: tuple[Path, str]) -> None:
    folder, text = searched
    assert {file.name for file in folder.iterdir()} == {
        "sensitivity.json", "allocation.json", "bits.png", "bits.svg",
        "front.json", "front.png", "front.svg", "points", "search.html",
    }  # fmt: skip
    found = BitAllocation.load(folder)
    assert found.costs["size"] <= 1900
    for name in found.layers:
        assert name in text
    assert "Bits per layer" in text
    assert "of 1.900 kB" in text
    assert "of 1.000 ms on bitfusion" in text
    front = json.loads((folder / "front.json").read_text())
    assert front["cost"] == "size"
    assert len(list((folder / "points").iterdir())) == len(front["points"]) >= 3
    assert "--bits-from" in text
    uniform = text[text.index("Uniform weights, for comparison") :].splitlines()
    assert [line.split()[0] for line in uniform[4:8]] == ["2", "3", "4", "8"]


def test_the_allocation_is_delivered_with_its_size(
    invoke: Invoke, searched: tuple[Path, str], network_file: Path, images: Path, tmp_path: Path
) -> None:
    folder, _ = searched
    for source in (folder, folder / "points" / "02.json"):
        out = tmp_path / source.name
        start = ("quantize", f"{network_file}:build", "--calib", images, "--bits-from", source, "-o", out)
        result = invoke(*start, *ROUNDED, "--eval", images)
        assert result.exit_code == 0, result.output
        expected = BitAllocation.load(source)
        delivered = brecq.load(out)
        assert delivered.weight_bytes() == expected.costs["size"]
        assert "Bits per layer" in result.stdout
        assert (out / "bits.svg").is_file()
        report = json.loads((out / "report.json").read_text())
        assert BitAllocation.from_dict(report["allocation"]) == expected


def test_another_budget_takes_the_sensitivities_over(
    invoke: Invoke, searched: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = searched
    found = {}
    for algorithm in ("exact", "genetic", "random"):
        out = tmp_path / algorithm
        result = invoke("search", folder, "--budget", "size=1700B", "--algorithm", algorithm, "-o", out)
        assert result.exit_code == 0, result.output
        found[algorithm] = BitAllocation.load(out)
        assert found[algorithm].costs["size"] <= 1700
        assert found[algorithm].algorithm == algorithm
        assert SensitivityTable.load(out) == SensitivityTable.load(folder)
    assert found["exact"].loss <= found["genetic"].loss <= 1.01 * found["exact"].loss
    other = invoke("search", folder, "--budget", "size=1700B", "--metric", "relative", "-o", tmp_path / "relative")
    assert other.exit_code == 0
    assert BitAllocation.load(tmp_path / "relative").metric == "relative"


@pytest.mark.parametrize(("task", "outputs"), [(None, "auto"), ("classification", "auto"), ("regression", "values")])
def test_a_task_says_what_the_outputs_are(
    invoke: Invoke,
    network_file: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str | None,
    outputs: str,
) -> None:
    def stop(*arguments: Any, **_: Any) -> None:
        asked.append(arguments[2])
        raise CheckpointError("enough")

    asked: list[QuantConfig] = []
    monkeypatch.setattr("brecq.precision.measure.measure_sensitivity", stop)
    given = () if task is None else ("--task", task)
    invoke("search", f"{network_file}:build", "--calib", images, *BUDGET, "-o", tmp_path / "o", *given)
    assert [config.outputs for config in asked] == [outputs]
    text = invoke("search", f"{network_file}:build", "--calib", images, *BUDGET, "-o", tmp_path / "t", "--tokens", "4")
    assert "--tokens belongs to text" in str(text.exception) + text.output


def test_learned_codes_go_along(invoke: Invoke, network_file: Path, images: Path, tmp_path: Path) -> None:
    model, small = f"{network_file}:build", ("--calib-size", "16", "--steps", "3", "--batch-size", "4")
    result = invoke(
        "search", model, "--calib", images, *small, *BUDGET, "--quality", "reconstructed", "--bits", "2,4",
        "--cross", "all", "--draws", "2", "-o", tmp_path / "first",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert SensitivityTable.load(tmp_path / "first").cross == "all"
    assert invoke("search", tmp_path / "first", *BUDGET, "-o", tmp_path / "second").exit_code == 0
    done = invoke(
        "quantize", model, "--calib", images, *small, "--bits-from", tmp_path / "second", "-o", tmp_path / "o"
    )
    assert done.exit_code == 0, done.output
    assert (
        brecq.load(tmp_path / "o")
        .report.notes[-1]
        .endswith("weights started from the codes that the sensitivity table learned")
    )


def test_an_interrupted_search_is_resumed(
    invoke: Invoke, searched: tuple[Path, str], network_file: Path, images: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    start = ("search", f"{network_file}:build", "--calib", images, "--calib-size", "16", *BUDGET, "-o", tmp_path / "s")
    measured: list[object] = []
    losses = BlockMeter.losses

    def some(self: BlockMeter, bits: dict[str, int]) -> dict[str, float]:
        measured.append(bits)
        if len(measured) == 12:
            raise KeyboardInterrupt
        return losses(self, bits)

    monkeypatch.setattr(BlockMeter, "losses", some)
    broken = invoke(*start)
    assert broken.exit_code not in (0, 2)
    assert "--resume continues" in broken.stdout
    assert "holds an unfinished run; continue it with --resume" in invoke(*start).stderr
    again = invoke(*start, "--resume")
    assert again.exit_code == 0, again.output
    assert "from the earlier run" in again.stdout
    whole = SensitivityTable.load(searched[0])
    assert SensitivityTable.load(tmp_path / "s").terms == whole.terms
    assert len(measured) < 12 + len(whole.terms)


def test_a_finished_search_is_not_measured_again_and_overwritten_whole(
    invoke: Invoke, searched: tuple[Path, str], network_file: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    shutil.copytree(searched[0], out)
    write_arrays(out / "learned.safetensors", {}, {"format": "brecq codes"}, CheckpointError, sealed=True)
    start = ("search", f"{network_file}:build", "--calib", images, "--calib-size", "16", *BUDGET, "-o", out)
    assert "is finished; take its sensitivities over" in invoke(*start, "--resume").stderr
    (out / "points" / "99.json").write_text("{}")  # the user's
    assert invoke(*start, "--force").exit_code == 0
    assert [file.name for file in (out / "points").iterdir()] == ["99.json"]
    shutil.rmtree(out / "points")
    assert {file.name for file in out.iterdir()} == {
        "sensitivity.json", "allocation.json", "bits.png", "bits.svg", "search.html",
    }  # fmt: skip
    (out / "learned.safetensors").write_bytes(b"the user's")
    assert "learned.safetensors is not brecq's and is not replaced" in invoke(*start, "--force").stderr


def test_budgets_out_of_reach_are_known_before_anything_is_measured(
    invoke: Invoke, network_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockMeter, "__init__", lambda *_, **__: pytest.fail("measured"))
    start = ("search", f"{network_file}:build", "--calib", images, "--calib-size", "16", "-o", tmp_path / "s")
    refused = invoke(*start, "--budget", "size=100B")
    assert refused.exit_code == 2
    assert "size ≤ 100B; reachable are 1." in refused.stderr
    assert "needs a hardware model" in invoke(*start, "--budget", "latency=1ms").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "--budget", "size=1MB"], "needs calibration data"),
        (["MODEL", "--calib", "IMAGES", "--budget", "size=1"], "give a number and a unit"),
        (["MODEL", "--calib", "IMAGES", *BUDGET, "--bits", "two"], "--bits is 'two'"),
        (["MODEL", "--calib", "IMAGES", *BUDGET, "--bits", "1,2"], "bits is 1"),
        (["MODEL", "--calib", "IMAGES", *BUDGET, "--hardware", "tpu"], "cannot read 'tpu'"),
        (["MODEL", "--calib", "IMAGES", *BUDGET, "--hardware", "t.json"], "cannot read 't.json'"),
        (["MODEL", "--calib", "nowhere", *BUDGET], "--calib is 'nowhere'"),
        (["IMAGES", *BUDGET], "holds no finished search"),
        (["SEARCH", *BUDGET, "--bits", "2,4"], "drop --bits"),
        (["SEARCH", *BUDGET, "--calib", "IMAGES"], "drop --calib"),
        (["SEARCH", *BUDGET, "-o", "SEARCH"], "overwritten by its own"),
    ],
)
def test_searches_that_cannot_be_made(
    invoke: Invoke, searched: tuple[Path, str], network_file: Path, images: Path, tmp_path: Path,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    known = {"MODEL": f"{network_file}:build", "IMAGES": str(images), "SEARCH": str(searched[0])}
    output = () if "-o" in arguments else ("-o", tmp_path / "s")
    result = invoke("search", *(known.get(a, a) for a in arguments), *output)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("command", ["search", "profile", "check"])
def test_detectors_are_refused_by_what_looks_at_whole_networks(
    invoke: Invoke, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    detector = Source("detector", torch.nn.Identity(), None, (), "", submodules=("backbone", "head"), task="detection")
    monkeypatch.setattr("brecq.sources.load_source", lambda *_, **__: detector)
    options = {
        "search": ("--calib", images, "--budget", "size=1MB", "-o", tmp_path / "s"),
        "profile": ("-o", tmp_path / "latency.json"),
        "check": ("--target", "tensorrt"),
    }
    result = invoke(command, "net", *options[command])
    assert result.exit_code == 2
    assert "detector is quantized in parts (backbone, head)" in result.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-w", "4"], "--weight-bits is decided by --bits-from"),
        (["--placement", "input"], "--placement is decided by"),
        (["--bits-from", "nowhere"], "--bits-from is 'nowhere', which does not exist"),
    ],
)
def test_deliveries_that_cannot_be_made(
    invoke: Invoke, searched: tuple[Path, str], network_file: Path, images: Path, tmp_path: Path,
    more: list[str], message: str,
) -> None:  # fmt: skip
    source = () if "--bits-from" in more else ("--bits-from", searched[0])
    result = invoke(
        "quantize", f"{network_file}:build", "--calib", images, "-o", tmp_path / "out", *source, *more, *ROUNDED
    )
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_profile_is_a_hardware_model(
    invoke: Invoke, searched: tuple[Path, str], network_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "latency.json"
    quick = ("--repeats", "3", "--warmup", "1", "--size", "16")
    result = invoke("profile", f"{network_file}:plain", "--hardware", "onnxruntime", "-o", file, *quick)
    assert result.exit_code == 0, result.output
    assert "Milliseconds a sample" in result.stdout
    assert "conv2d (input 3x16x16" in result.stdout.replace("\n", " ")
    arguments = ("search", searched[0], "--budget", "latency=1s", "--hardware", file, "-o", tmp_path / "s")
    found = invoke(*arguments)
    assert found.exit_code == 0, found.output
    assert "on onnxruntime" in found.stdout
    table = json.loads(file.read_text())
    table["entries"] = table["entries"][2:]
    shutil.rmtree(tmp_path / "s")
    file.write_text(json.dumps(table))
    refused = invoke(*arguments)
    assert refused.exit_code == 2
    assert "says nothing about the layer 'stem'" in refused.stderr
    assert "name a .json or .csv" in invoke("profile", f"{network_file}:plain", "-o", tmp_path / "t.txt").stderr
