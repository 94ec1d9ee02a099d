"""Data that is looked at before it is read: nothing of it is lost, nor read twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import brecq
from brecq.data.calls import begun, collect_calls
from brecq.data.windows import windowed
from brecq.errors import DataError


class Once(IterableDataset[Tensor]):
    """Its own iterator, as data sets over a file or a queue are."""

    def __init__(self, samples: Iterable[Any]) -> None:
        self.samples = iter(samples)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self.samples)


class Again(IterableDataset[Tensor]):
    """Begins anew each time; `begun` counts how often."""

    def __init__(self, samples: Iterable[Any]) -> None:
        self.samples, self.begun = list(samples), 0

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        return iter(self.samples)


class Plain:
    """No data set of PyTorch's, and its own iterator."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self.batches)


X = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 4, 4)
KINDS: dict[str, Callable[[], Any]] = {
    "samples once": lambda: Once(X),
    "samples again": lambda: Again(X),
    "loader": lambda: DataLoader(Once(X), batch_size=2),
    "batches once": lambda: Plain(X.split(2)),
    "generator": lambda: (batch for batch in X.split(2)),
    "list": lambda: list(X.split(2)),
    "pictures once": lambda: Plain([list(batch) for batch in X.split(2)]),
    "pictures of a data set": lambda: Once([list(batch) for batch in X.split(2)]),
}


class Lists(nn.Module):
    """Takes a list of pictures, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pictures: list[Tensor]) -> Tensor:
        assert isinstance(pictures, list)
        return torch.stack(pictures).mean((1, 2, 3))[:, None] * self.scale


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_sample_is_there_once(kind: str) -> None:
    model = Lists() if "pictures" in kind else Mean()
    assert torch.equal(collect_calls(KINDS[kind](), model).data.inputs[0], X)

    seen: list[Tensor] = []

    def keep(outputs: Tensor, expected: Tensor) -> float:
        seen.append(outputs.flatten())
        return float((outputs - expected).abs().max())

    found = brecq.evaluate(model, KINDS[kind](), metric=keep, reference=model)
    assert found.samples == 6
    assert torch.cat(seen).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_data_set_is_begun_once() -> None:
    data = Again(X)
    first, whole = begun(data)
    assert torch.equal(first, X[0])
    assert torch.equal(torch.stack(list(whole)), X)
    assert data.begun == 1


def test_detectors_resize_calibration_pictures_themselves(detectors: ModuleType) -> None:
    """Of other shapes the middle is taken behind that, at the scale of use; without differences all of it."""
    model = detectors.retinanet()  # to a short side of 64, a long one of 96 at most, in steps of 32
    for sizes, window in (
        ([(60, 80), (80, 60)], (64, 64)),
        ([(60, 80), (60, 80)], (64, 96)),
        ([(60, 80), (30, 120)], (64, 96)),
        ([(30, 120), (120, 30)], (64, 64)),
    ):
        pictures = [torch.rand(3, *size) for size in sizes]
        calls = collect_calls([pictures], model)
        assert calls.window == window
        assert ("the middle" in calls.note) == (len(set(sizes)) > 1)
        with windowed(model, calls.window):
            batched, _ = model.transform(pictures)
        assert batched.tensors.shape[-2:] == window
        for picture, found in zip(pictures, batched.tensors, strict=True):
            alone, _ = model.transform([picture])
            height, width = alone.image_sizes[0]
            rows, columns = min(height, window[0]), min(width, window[1])
            top, left = (height - rows) // 2, (width - columns) // 2
            expected = alone.tensors[0, :, top : top + rows, left : left + columns]
            assert torch.equal(found[:, :rows, :columns], expected)
            assert not found[:, rows:].any()
    alike = collect_calls([[torch.rand(3, 20, 90), torch.rand(3, 50, 50)]], detectors.ssd())
    assert (alike.window, alike.note) == ((64, 64), "")
    assert "resize" not in vars(model.transform)


@pytest.mark.parametrize("data", [np.array(0.0, np.float32), torch.tensor(0.0)])
def test_a_single_number_is_no_data(data: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 3)).eval()
    for use in (lambda: brecq.evaluate(net, data, reference=net), lambda: collect_calls(data, net)):
        with pytest.raises(DataError, match="is a single number; give batches"):
            use()
