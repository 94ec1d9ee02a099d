"""`--task`, `--metric`, `--decode` and `--tokenizer` from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import Result

import brecq
from brecq.cli import tasks
from brecq.cli.tasks import Judged
from brecq.data import Preprocessing
from brecq.errors import ConfigError, DataError

Invoke = Callable[..., Result]

SOURCE = """
import torch
from torch import nn
from brecq.data import Preprocessing


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.near, self.far = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 3, 2, 1)

    def forward(self, x):
        x = self.body(x)
        return [self.near(x), self.far(x)]


def build():
    torch.manual_seed(3)
    return Detector().eval(), Preprocessing((0.5,), (0.25,), (32, 32), None, fit="letterbox")


def decode(outputs):
    boxes, scores, labels = [], [], []
    for output in outputs:
        flat = output.flatten(2).transpose(1, 2)
        boxes.append(torch.cat([flat[..., :2] * 8, flat[..., :2] * 8 + 16], -1))
        scores.append(flat[..., 4:].sigmoid().amax(-1))
        labels.append(flat[..., 4:].argmax(-1))
    return torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1)


def largest(outputs, targets):
    return {"largest": max(float(output.abs().max()) for output in outputs)}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(26, 16), nn.Linear(16, 16), nn.Linear(16, 26)

    def forward(self, tokens):
        return self.head(torch.relu(self.mix(self.embed(tokens))))


def language():
    torch.manual_seed(4)
    return Model().eval()


def letters(text):
    return [ord(letter) - ord("a") for letter in text if letter.isalpha()]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (24, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        (tmp_path / "labels" / f"{index}.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "text.txt").write_text("abcdefghijklmnopqrstuvwxyz " * 6)
    return tmp_path


def test_detection(folder: Path, invoke: Invoke) -> None:
    pytest.importorskip("faster_coco_eval")
    net, out = folder / "net.py", folder / "out"
    task_options = ("--task", "detection", "--decode", f"{net}:decode")
    result = invoke(
        "quantize", f"{net}:build", "--calib", folder, "--eval", folder, *task_options, "--steps", "2", "-o", out
    )
    assert result.exit_code == 0, result.output
    assert "with targets" in result.output
    assert "YOLO labels of 80 classes" in result.output
    record = json.loads((out / "record.json").read_text())
    names = [set(row["metrics"]) for row in record["rows"]]
    assert {"AP %", "AP50 %"} <= names[0]
    assert {"AP %", "AP50 %", "flips %", "SQNR dB"} <= names[1] & names[2]
    page = (out / "report.html").read_text()
    assert "AP50 %" in page
    assert page.count('<svg viewBox="0 0 32 32"') == len(record["detected"]) == 6
    drawn = sum(len(each["floating"]) + len(each["quantized"]) for each in record["detected"])
    assert page.count("<rect class=") == drawn > 0
    assert brecq.load(out).report.measured == {row["name"]: row["metrics"] for row in record["rows"]}
    again = invoke(
        "evaluate", out, "--data", folder, "--decode", f"{net}:decode", "--task", "detection", "--model",
        f"{net}:build", "--json",
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    measured = json.loads(again.stdout)
    assert measured["task"] == "detection"
    last = record["rows"][2]["metrics"]
    assert measured["metrics"]["AP %"] == pytest.approx(last["AP %"])
    assert measured["flips"] == pytest.approx(last["flips %"])
    assert set(measured["outputs"]) == {"0", "1"}
    mine = invoke(
        "evaluate", out, "--data", folder / "images", "--metric", f"{net}:largest", "--model", f"{net}:build", "--json"
    )
    assert mine.exit_code == 0, mine.output
    assert json.loads(mine.stdout)["metrics"]["largest"] > 0


def test_a_detector_without_evaluation_needs_no_decode(folder: Path, invoke: Invoke) -> None:
    net, out = folder / "net.py", folder / "out"
    result = invoke(
        "quantize", f"{net}:build", "--calib", folder / "images", "--task", "detection", "--method", "rtn", "-o", out
    )
    assert result.exit_code == 0, result.output
    assert (out / "report.html").is_file()


def test_language(folder: Path, invoke: Invoke) -> None:
    net, out, text = folder / "net.py", folder / "out", folder / "text.txt"
    task_options = ("--task", "language", "--tokenizer", f"{net}:letters", "--tokens", "6")
    result = invoke(
        "quantize", f"{net}:language", "--calib", text, "--eval", text, *task_options, "--steps", "2", "-o", out
    )
    assert result.exit_code == 0, result.output
    record = json.loads((out / "record.json").read_text())
    assert {"perplexity", "flips %"} <= set(record["rows"][-1]["metrics"])
    remembered = ("--model", f"{net}:language", *task_options[2:4])  # task and tokens are the result's
    result = invoke("evaluate", out, "--data", text, *remembered)
    assert result.exit_code == 0, result.output
    assert "perplexity" in result.output
    assert "samples of 6 from" in result.output
    other = invoke("evaluate", out, "--data", text, *remembered, "--tokens", "12")
    assert "have 12" in str(other.exception) + other.output or "shape" in str(other.exception) + other.output


def test_detection_sees_whole_pictures() -> None:
    cropping = Preprocessing.imagenet()
    assert tasks.whole_pictures(cropping, "detection") == cropping.replace(fit="corner")
    for other in (cropping.replace(resize=None), cropping.replace(fit="letterbox"), None):
        assert tasks.whole_pictures(other, "detection") == other
    assert tasks.whole_pictures(cropping, "classification") == cropping


def test_what_does_not_go_together(folder: Path, invoke: Invoke) -> None:
    net = folder / "net.py"
    for extra, message in (
        (["--decode", f"{net}:decode", "--eval", folder], "--decode belongs to a task"),
        (["--tokenizer", "gpt2"], "--tokenizer belongs to text"),
        (["--metric", f"{net}:largest"], "give --eval PATH too"),
    ):
        result = invoke("quantize", f"{net}:build", "--calib", folder, "-o", folder / "out", *extra)
        assert result.exit_code != 0
        assert isinstance(result.exception, ConfigError) or message in result.output
        assert message in (str(result.exception) + result.output)


def test_a_task_looks_at_the_output_that_is_named() -> None:
    outputs = {"xy": torch.ones(4, 2), "z": torch.zeros(4)}
    with pytest.raises(DataError, match=r"evaluate --output"):
        Judged(task="regression").made().update(outputs, torch.zeros(4, 2))  # type: ignore[union-attr]
    metric = Judged(task="regression").made("xy")
    metric.update(outputs, torch.zeros(4, 2))  # type: ignore[union-attr]
    assert metric.compute()["RMSE"] == 1  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="--output is for tasks"):
        Judged(task="detection").made("xy")


def test_targets_without_a_task_are_refused(folder: Path, invoke: Invoke) -> None:
    net = folder / "net.py"
    np.savez(folder / "t.npz", x=np.zeros((4, 3, 32, 32), np.float32), y=np.zeros((4, 5), np.float32))
    result = invoke("quantize", f"{net}:build", "--calib", folder, "--eval", folder / "t.npz", "-o", folder / "out")
    assert "no class indices; say what the network does (--task)" in (str(result.exception) + result.output)


def test_targets_that_say_nothing_are_refused_before_any_work(folder: Path, invoke: Invoke) -> None:
    for file in (folder / "labels").iterdir():
        file.write_text("")
    net, out = folder / "net.py", folder / "out"
    arguments = ("quantize", f"{net}:build", "--calib", folder, "--eval", folder, "--steps", "2", "-o", out)
    result = invoke(*arguments, "--task", "detection", "--decode", f"{net}:decode")
    assert result.exit_code == 2
    assert f"{folder}: the targets hold no boxes: nothing can be judged by them" in result.stderr
    assert not (out / "weights.safetensors").exists()
