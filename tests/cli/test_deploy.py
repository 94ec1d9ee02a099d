"""From a saved result to a verified file on the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from brecq.cli import app
from brecq.page.record import Record
from brecq.units import format_bytes

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

Invoke = Callable[..., Result]


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def saved(network_file: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved result, not to be changed."""
    out = tmp_path_factory.mktemp("deploy") / "out"
    bits = ("-w", "3", "-a", "8", "--method", "rtn", "--calib-size", "16")
    call("quantize", f"{network_file}:build", "--calib", images, "-o", out, *bits)
    return out


@pytest.fixture(scope="module")
def file(saved: Path) -> Path:
    """Its ONNX file."""
    path = saved.parent / "model.onnx"
    call("export", saved, "-o", path)
    return path


def test_export_tells_what_it_wrote(invoke: Invoke, saved: Path, tmp_path: Path) -> None:
    result = invoke("export", saved, "--format", "onnx", "-o", tmp_path / "model.onnx", "--pack", "cast")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "opset 21" in text
    assert "the outputs of body.0.conv2, body.1.conv2" in text
    size = format_bytes((tmp_path / "model.onnx").stat().st_size)
    assert f"saved {tmp_path / 'model.onnx'}, {size} (" in text
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 21


def test_verify_finds_every_code_equal(invoke: Invoke, saved: Path, file: Path, images: Path) -> None:
    result = invoke("verify", saved, file, "--data", images, "--bisect")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "6 of 6 convolutions and linear layers are integer kernels" in text
    assert "ONNX Runtime on 24 samples" in text
    assert "file against the integer simulator 100.00 0 0 100.00" in text
    assert "codes of 9 quantized tensors are equal" in text
    assert "2 tensors in float that integer kernels need quantized" in text


def test_verify_against_the_float_network(
    invoke: Invoke, saved: Path, file: Path, images: Path, network_file: Path, tmp_path: Path
) -> None:
    result = invoke("verify", saved, file, "--data", images, "--model", f"{network_file}:build", "--json")
    assert result.exit_code == 0, result.output
    far = json.loads(result.stdout)["against_float"]
    assert [each["sqnr"] for each in far] == sorted(each["sqnr"] for each in far)
    assert "output" in {each["tensor"] for each in far}
    out = shutil.copytree(saved, tmp_path / "out")
    shown = invoke("verify", out, file, "--data", images, "--model", f"{network_file}:build", "--report")
    assert "Against the float network" in shown.output
    (kept,) = Record.load(out).exported
    assert kept.outputs == pytest.approx(next(each["sqnr"] for each in far if each["tensor"] == "output"))
    assert "The exported file model.onnx in ONNX Runtime, on 24 samples" in (out / "report.html").read_text()
    for option in (("--weights", file), ("--report",)):
        refused = invoke("verify", saved, file, "--data", images, *option)
        assert "name it with --model" in (refused.output + str(refused.exception))


def test_a_file_that_shows_nothing_inside_is_verified_and_compared_by_its_outputs(
    invoke: Invoke, saved: Path, images: Path, network_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    out, file = shutil.copytree(saved, tmp_path / "out"), tmp_path / "network.xml"
    call("export", saved, "-o", file, "--format", "openvino")
    found = invoke("verify", out, file, "--data", images, "--model", f"{network_file}:build", "--report")
    assert found.exit_code == 0, found.output
    text = " ".join(found.stdout.split())
    assert "the file is this result's" in text
    assert "no tensor inside the file is shown: only what it returns is compared with float" in text
    (kept,) = Record.load(out).exported
    assert kept.outputs is not None
    assert not kept.layers
    assert "The exported file network.xml in OpenVINO" in (out / "report.html").read_text()


def test_verify_fails_for_another_results_file(
    invoke: Invoke, saved: Path, network_file: Path, images: Path, tmp_path: Path
) -> None:
    """The same network at other widths: the same tensors, other numbers."""
    bits = ("-w", "2", "-a", "8", "--method", "rtn", "--calib-size", "16")
    call("quantize", f"{network_file}:build", "--calib", images, "-o", tmp_path / "other", *bits)
    call("export", tmp_path / "other", "-o", tmp_path / "other.onnx")
    result = invoke("verify", saved, tmp_path / "other.onnx", "--data", images, "--bisect")
    assert result.exit_code == 1
    assert "the first tensor that differs is body.0.conv1.conv2d" in result.stdout  # the stem has 8 bits in both
    found = invoke("verify", saved, tmp_path / "other.onnx", "--data", images, "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["as_expected"] is False


def test_benchmark_shows_both_networks(invoke: Invoke, saved: Path, file: Path) -> None:
    result = invoke("benchmark", saved, file, "--batch", "2", "--runs", "3")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[:2] for row in rows if row and row[0] in ("float", "quantized")] == [
        ["float", "2"],
        ["quantized", "2"],
    ]
    assert "% over the" in result.stdout
    values = json.loads(invoke("benchmark", saved, file, "--batch", "1", "--runs", "2", "--json").stdout)
    assert values["size"] == os.path.getsize(file)
    assert values["kernels"]["integer"] == 6


def test_evaluate_on_integers(invoke: Invoke, saved: Path, images: Path, labels: Path) -> None:
    arguments = ("evaluate", saved, "--data", images, "--labels", labels, "--no-reference")
    fake, integer = (json.loads(invoke(*arguments, *more, "--json").stdout) for more in ((), ("--integer",)))
    assert integer["samples"] == fake["samples"] == 24
    assert abs(integer["top1"] - fake["top1"]) <= 100 * 2 / 24
    assert "on integers" in invoke(*arguments, "--integer").stdout


def test_formats_are_listed(invoke: Invoke) -> None:
    text = " ".join(invoke("export", "--formats").stdout.split())
    if importlib.util.find_spec("executorch") is None:
        assert "'brecq[executorch]'" in text
    assert "onnx .onnx" in text
    assert "planes or cast or" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "{saved}", "-o", "{file}"), "exists; replace it with --force"),
        (
            ("export", "{saved}", "-o", "x.onnx", "--pack", "zip"),
            "--option pack is 'zip'; give planes or cast or native or int8",
        ),
        (
            ("export", "{saved}", "-o", "x.onnx", "--option", "bits=4"),
            "unknown option of the format onnx 'bits'; choose from pack",
        ),
        (("export", "{saved}", "-o", "x.onnx", "--option", "pack"), "gives no value; write pack=VALUE"),
        (("export", "{saved}", "-f", "coreml", "-o", "x"), "the format is 'coreml'; choose one of onnx"),
        (("export", "nowhere", "-o", "x.onnx"), "RESULT is 'nowhere', which does not exist"),
        (("verify", "{saved}", "nowhere.onnx", "--data", "{images}"), "FILE is 'nowhere.onnx', which does not exist"),
        (("verify", "{saved}", "{saved}/report.json", "--data", "{images}"), "no format writes files like"),
        (("benchmark", "{saved}", "{file}", "--batch", "0"), "batches is 0; it must be at least 1"),
    ],
)
def test_errors_name_the_value_and_the_fix(
    invoke: Invoke, saved: Path, file: Path, images: Path, arguments: tuple[str, ...], message: str
) -> None:
    places = {"{saved}": saved, "{file}": file, "{images}": images}
    filled = [text.replace(key, str(value)) for text in arguments for key, value in places.items() if key in text]
    given = iter(filled)
    result = invoke(*(next(given) if "{" in text else text for text in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
