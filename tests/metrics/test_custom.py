from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import brecq
from brecq import metrics
from brecq.data import Dataset
from brecq.errors import BrecqError, ConfigError, DataError
from brecq.metrics.base import stacked

SOURCE = """
def mae(outputs, targets):
    return (outputs - targets).abs().mean()

def both(outputs, targets):
    return {"mae": mae(outputs, targets), "count": len(outputs)}

class Largest:
    def __init__(self):
        self.value = 0.0
    def update(self, outputs, targets):
        self.value = max(self.value, float((outputs - targets).abs().max()))
    def compute(self):
        return {"largest": self.value}

def make():
    return Largest()

ready = Largest()
number = 3
def broken(outputs, targets):
    raise KeyError("weight")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_functions_are_averaged_over_samples(file: Path) -> None:
    metric = metrics.load_metric(f"{file}:both")
    metric.update(torch.ones(3, 2), torch.zeros(3, 2))
    metric.update(torch.ones(1, 2) * 5, torch.zeros(1, 2))
    assert metric.compute() == {"mae": 2.0, "count": 2.5}


@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.Tensor.numpy])
def test_one_number_a_sample_is_averaged_over_samples(kind: Callable[[torch.Tensor], Any]) -> None:
    metric = metrics.Function(lambda outputs, targets: {"mae": kind((outputs - targets).abs().mean(1)), "n": 2})
    metric.update(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.zeros(2, 2))
    metric.update(torch.full((1, 2), 5.0), torch.zeros(1, 2))
    assert metric.compute() == {"mae": 3.0, "n": 2.0}


@pytest.mark.parametrize("shape", [(3, 1), (2,), (3, 3)])
def test_other_shapes_than_one_number_a_sample(shape: tuple[int, ...]) -> None:
    metric = metrics.Function(lambda outputs, targets: {"mae": torch.ones(shape)})
    told = (
        rf"computed a Tensor of shape {re.escape(str(list(shape)))} as mae; .* one for each sample of a batch, \[N\]"
    )
    with pytest.raises(DataError, match=told):
        metric.update(torch.ones(3, 2), torch.zeros(3, 2))


@pytest.mark.parametrize("name", ["Largest", "make", "ready"])
def test_objects_classes_and_factories(file: Path, name: str) -> None:
    metric = metrics.load_metric(f"{file}:{name}")
    metric.update(torch.ones(3), torch.zeros(3))
    assert metric.compute() == {"largest": 1.0}


def test_what_is_no_metric(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.py'; write file\.py:name"):
        metrics.load_metric(str(file))
    with pytest.raises(BrecqError, match="no function 'mea'; did you mean mae"):
        metrics.load_metric(f"{file}:mea")
    with pytest.raises(ConfigError, match="is a int; name a function"):
        metrics.load_metric(f"{file}:number")
    with pytest.raises(DataError, match=r"broken\(outputs, targets\) fails: KeyError: 'weight'; outputs are \[2\]"):
        metrics.load_metric(f"{file}:broken").update(torch.zeros(2), torch.zeros(2))


def test_targets_of_one_shape_come_as_a_tensor(file: Path) -> None:
    outputs = [torch.rand(2, 3, 4, 4), torch.rand(1, 3, 4, 4)]
    right = torch.rand(3, 3, 4, 4)
    data = Dataset((torch.cat(outputs),), targets=list(right))  # as folders of pairs are read
    found = brecq.evaluate(torch.nn.Identity(), data, metric=metrics.load_metric(f"{file}:mae"), batch_size=2)
    assert found.metrics["mae"] == pytest.approx(float((torch.cat(outputs) - right).abs().mean()), rel=1e-6)


def test_targets_of_several_shapes_come_as_a_list() -> None:
    masks = [torch.zeros(2, 3), torch.zeros(4, 5), torch.zeros(1, 1)]
    assert stacked(masks) is masks
    boxes = [{"boxes": torch.zeros(1, 4)}]
    assert stacked(boxes) is boxes
    assert stacked(masks[:1]).shape == (1, 2, 3)
