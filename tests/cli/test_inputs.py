"""What commands load before they work: preprocessing, evaluation data, the device."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from brecq.cli import inputs
from brecq.cli.inputs import Draw, EvaluationData, override_preprocessing, tell_data, use_device
from brecq.cli.options import Machine
from brecq.data import Form, Preprocessing, load
from brecq.errors import ConfigError, DataError
from brecq.evaluation import evaluate

SMALL = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=(8, 8), resize=8)


def test_without_changes_the_preprocessing_stays() -> None:
    assert override_preprocessing(SMALL, {}) is SMALL
    assert override_preprocessing(None, {}) is None


def test_changes_override_what_the_model_says() -> None:
    assert override_preprocessing(SMALL, {"color": "BGR"}) == SMALL.replace(color="BGR")


def test_without_a_preprocessing_of_its_own_a_model_needs_mean_std_and_size() -> None:
    with pytest.raises(ConfigError, match="--std and --size"):
        override_preprocessing(None, {"mean": (0.5,)})
    changes = {"mean": (0.5,), "std": (0.5,), "size": (8, 8)}
    made = override_preprocessing(None, changes)
    assert made == Preprocessing(mean=(0.5,), std=(0.5,), size=(8, 8), resize=None)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Data is read 8 samples at a time; the list counts the passes over it."""
    passes: list[int] = []
    read = functools.partial(load.iter_samples, chunk=8)
    monkeypatch.setattr(load, "iter_samples", lambda *a, **k: (passes.append(1), read(*a, **k))[1])
    return passes


class Scores(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 4, *x.shape[2:])


def test_masks_of_the_most_telling_classes_are_tried_first(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index, classes in enumerate(((1, 1), (1, 255), (1, 6), (0, 1), (255, 255))):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{index}.png")
        mask = Image.new("L", (8, 8), classes[0])
        mask.paste(classes[1], (0, 0, 4, 4))
        mask.save(tmp_path / "masks" / f"{index}.png")
    data = EvaluationData(tmp_path, SMALL, Draw(None, 0), None, Form("segmentation"))
    telling = data.telling()
    assert [Path(name).name for name in telling.names][1] == "2.png"
    with pytest.raises(DataError, match=r"2\.png: a mask holds class 6, and the network has classes 0 to 3"):
        evaluate(Scores(), telling, metric="segmentation")


def test_small_evaluation_data_is_read_once(images: Path, labels: Path, small_parts: list[int]) -> None:
    data = EvaluationData(images, SMALL, Draw(None, 0), labels)
    assert data.labelled
    for _ in range(2):
        assert [len(part) for part in data] == [8, 8, 8]
    assert len(small_parts) == 1


def test_large_evaluation_data_is_read_anew_and_is_the_same(
    images: Path, small_parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.cat([part.inputs[0] for part in EvaluationData(images, SMALL, Draw(None, 0), None)])
    monkeypatch.setattr(inputs, "KEEP_BYTES", 100)
    data = EvaluationData(images, SMALL, Draw(None, 0), None)
    assert not data.labelled
    assert len(data.parts) == 1
    assert torch.equal(torch.cat([part.inputs[0] for part in data]), whole)
    assert torch.equal(torch.cat([part.inputs[0] for part in data]), whole)
    assert len(small_parts) == 4


def test_a_number_of_evaluation_samples_is_drawn_by_seed(images: Path) -> None:
    first, same, other = (next(iter(EvaluationData(images, SMALL, Draw(5, seed), None))) for seed in (1, 1, 2))
    assert len(first) == 5
    assert first.digest() == same.digest() != other.digest()


def test_the_least_and_the_largest_label_are_tried_first(images: Path, labels: Path, small_parts: list[int]) -> None:
    data = EvaluationData(images, SMALL, Draw(None, 0), labels)
    every = torch.cat([part.labels for part in data if part.labels is not None])
    tried = data.telling().labels
    assert tried is not None
    assert tried[1] == every.max()
    assert len(EvaluationData(images, SMALL, Draw(None, 0), None).telling()) == 2


def test_what_is_told_about_data(images: Path, small_parts: list[int]) -> None:
    console = Console(file=io.StringIO(), width=200)
    data = EvaluationData(images, SMALL, Draw(None, 0), None)
    tell_data(console, "evaluation", images, data)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == f"evaluation    24 samples of 3 × 8 × 8 from {images}, without labels"
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("device", "threads", "message"),
    [
        ("tpu9", None, "'tpu9'"),
        ("cuda:99", None, "CUDA devices"),
        ("cpu", 0, "threads is 0"),
        ("cpu", 100_000, "threads is 100000"),
    ],
)
def test_devices_that_are_not_there(device: str, threads: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        use_device(Machine(device=device, threads=threads))


def test_the_number_of_threads_is_set() -> None:
    before = torch.get_num_threads()
    try:
        use_device(Machine(threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
