"""Labels and targets that say nothing of what is right: -100, NaN, masks of 255, pictures without boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import metrics
from brecq.data import Dataset
from brecq.errors import DataError

SCORES = torch.eye(4)


class Given(nn.Module):
    """Returns a stored output for the sample of this number."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Any:
        places = x.long().flatten().tolist()
        if isinstance(self.outputs, Tensor):
            return self.outputs[places] * self.scale
        return [self.outputs[place] for place in places]


def data(answers: Any) -> Dataset:
    rows = torch.arange(float(len(answers)))[:, None]
    labels = isinstance(answers, Tensor) and answers.ndim == 1 and not answers.is_floating_point()
    return Dataset((rows,), **{"labels" if labels else "targets": answers})


@pytest.mark.parametrize("metric", [None, "classification"])
def test_labels_of_minus_100_are_left_out_and_counted(metric: str | None) -> None:
    model, labels = Given(SCORES), torch.tensor([0, -100, 1, 3])
    found = brecq.evaluate(model, data(labels), metric=metric, reference=Given(SCORES.flip(0)))
    top1 = found.top1 if metric is None else found.metrics["top-1 %"]
    assert top1 == pytest.approx(200 / 3)  # 0 and 3 of the three that have a label
    assert found.reference_metrics["top-1 %"] == pytest.approx(100 / 3)
    assert found.flips == 100.0  # the sample without a label has a decision all the same
    assert found.notes == ["1 of 4 labels are -100 and left out"]
    assert brecq.evaluate(model, data(torch.arange(4)), metric=metric).notes == []
    with pytest.raises(DataError, match="label -1"):
        brecq.evaluate(model, data(torch.tensor([0, -100, 1, -1])), metric=metric)


def test_positions_of_minus_100_do_not_flip() -> None:
    scores = torch.stack([SCORES, SCORES])  # [2, tokens, classes]
    metric = metrics.Classification(class_axis=-1)
    targets = torch.tensor([[0, 1, -100, -100], [0, 0, 2, -100]])
    metric.update(scores, targets)
    metric.compare(scores.flip(1), scores, targets)
    assert metric.compute() == {"top-1 %": 80.0}
    assert (metric.flips(), metric.notes()) == (100.0, ["3 of 8 labels are -100 and left out"])


def test_pixels_of_minus_100_are_left_out_and_counted() -> None:
    scores = SCORES[torch.tensor([[[0, 1], [2, 3]]])].permute(0, 3, 1, 2)
    metric = metrics.Segmentation()
    mask = torch.tensor([[[0, 1], [-100, 255]]])
    metric.update(scores, mask)
    metric.compare(scores.flip(1), scores, mask)
    assert metric.compute() == {"mIoU %": 100.0, "pixel accuracy %": 100.0}
    assert metric.notes() == ["1 of 4 pixels of the masks are -100 and left out"]
    assert metric._decisions == 2


def test_tokens_of_minus_100_are_told_of() -> None:
    metric = metrics.LanguageModel(shift=False)
    metric.update(torch.zeros(1, 4, 8), torch.tensor([[1, 2, -100, -100]]))
    assert metric.compute()["perplexity"] == pytest.approx(8.0)
    assert metric.notes() == ["2 of 4 tokens are -100 and left out"]


def test_samples_without_a_class_are_nobodys_neighbor() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.99, 0.01]])
    metric = metrics.Embeddings()
    metric.update(vectors, torch.tensor([0, 0, 1, 1, -100]))
    assert metric.compute() == {"recall@1 %": 100.0}
    assert metric.notes() == ["1 of 5 labels are -100 and left out"]


def distance(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs - targets).abs().mean())


NONE: dict[str, tuple[Any, Callable[[], Any], Any, str]] = {
    "labels": (None, lambda: torch.full((4,), -100), SCORES, "the labels are -100, all of them"),
    "classification": ("classification", lambda: torch.full((4,), -100), SCORES, "are -100, all of them"),
    "regression": ("regression", lambda: torch.full((4, 4), math.nan), SCORES, "the targets are NaN, all of them"),
    "own": (distance, lambda: torch.full((4, 4), math.nan), SCORES, "the targets are NaN, all of them"),
    "masks": (
        "segmentation", lambda: torch.tensor([255, -100, 255, 255]).view(4, 1, 1).expand(4, 2, 2),
        torch.rand(4, 3, 2, 2), "the targets hold no pixel that counts",
    ),
    "tokens": ("language", lambda: torch.full((4, 5), -100), torch.rand(4, 5, 8), "are -100, all of them"),
    "boxes": (
        "detection", lambda: [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}] * 4,
        [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}] * 4,
        "the targets hold no boxes",
    ),
    "classes": ("embeddings", lambda: torch.full((4,), -100), SCORES, "are -100, all of them"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NONE)
@pytest.mark.parametrize("parts", [False, True])
def test_targets_none_of_which_counts_are_an_error(kind: str, parts: bool) -> None:
    metric, answers, outputs, message = NONE[kind]
    whole, model = data(answers()), Given(outputs)
    with pytest.raises(DataError, match=f"{message}: nothing can be judged by them; repair them, or leave them out"):
        brecq.evaluate(model, iter([whole]) if parts else whole, metric=metric, reference=model)


@pytest.mark.parametrize("kind", ["regression", "own", "classification"])
def test_a_batch_none_of_which_counts_is_no_error(kind: str) -> None:
    metric, answers, outputs, _ = NONE[kind]
    some = data(SCORES if kind != "classification" else torch.arange(4))
    found = brecq.evaluate(Given(outputs), [data(answers()), some], metric=metric)
    assert found.metrics
    assert len(found.notes) == 1
