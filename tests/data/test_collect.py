from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from brecq import evaluate
from brecq.data import Dataset, collect
from brecq.data.calls import collect_calls
from brecq.errors import DataError
from brecq.metrics import Function

X = torch.randn(10, 3, 4, 4)
Y = torch.arange(10)


@pytest.mark.parametrize(
    "data",
    [
        X,
        X.numpy(),
        X.double(),
        list(X.split(4)),
        iter(X.split(3)),
        [(x,) for x in X.split(4)],
        [{"pixel_values": x} for x in X.split(4)],
        DataLoader(TensorDataset(X), batch_size=4),
        Dataset((X,)),
    ],
)
def test_inputs_alone(data: object) -> None:
    collected = collect(data, None)  # type: ignore[arg-type]
    assert torch.equal(collected.inputs[0], X)
    assert collected.labels is None


@pytest.mark.parametrize(
    "data",
    [
        [(x, y) for x, y in zip(X.split(4), Y.split(4), strict=True)],
        [[x, y.numpy()] for x, y in zip(X.split(4), Y.int().split(4), strict=True)],
        [{"image": x, "label": y} for x, y in zip(X.split(4), Y.split(4), strict=True)],
        [(x, int(y)) for x, y in zip(X, Y, strict=True)],
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=3),
    ],
)
def test_inputs_and_labels(data: object) -> None:
    for size in (None, 10):
        collected = collect(data, size)  # type: ignore[arg-type]
        assert torch.equal(collected.inputs[0], X)
        assert collected.labels.tolist() == list(range(10))
    assert collect(data, 5).labels.tolist() == list(range(5))  # type: ignore[arg-type]


def test_several_inputs() -> None:
    ids, mask = torch.randint(0, 9, (6, 5)), torch.ones(6, 5, dtype=torch.long)
    for data in ([(ids, mask)], [{"input_ids": ids, "attention_mask": mask}], TensorDataset(ids, mask)):
        collected = collect(data, None)
        assert torch.equal(collected.inputs[0], ids)
        assert torch.equal(collected.inputs[1], mask)
        assert collected.labels is None


def test_single_samples_are_recognized_by_the_network_input() -> None:
    assert torch.equal(collect(list(X), None, like=(torch.zeros(2, 3, 4, 4),)).inputs[0], X)


def test_iterator_is_read_only_as_far_as_needed() -> None:
    def endless() -> Iterator[torch.Tensor]:
        while True:
            yield X

    assert len(collect(endless(), 25)) == 25


def test_fewer_samples_warn() -> None:
    with pytest.warns(UserWarning, match="holds 10 samples, fewer than the 11 asked for"):
        assert len(collect(X, 11)) == 10


def test_gradients_are_cut() -> None:
    assert not collect([X.clone().requires_grad_()], None).inputs[0].requires_grad


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "holds no samples"),
        (iter([]), "holds no samples"),
        (torch.zeros(0, 3), "holds no samples"),
        (torch.tensor(1.0), "single number"),
        ([1.0, 2.0], "single number"),
        ("some/folder", "brecq.data.load_data"),
        (3, "is a int"),
        (["a", "b"], "element 0 of the data is a str"),
        ([X, None], "element 1 of the data is a NoneType"),
        ([()], "element 0 of the data holds no inputs"),
        ([X, X[:, :, :3]], r"element 1 of the data have shape \[\[3, 3, 4\]\], those in element 0 \[\[3, 4, 4\]\]"),
        ([(X, Y), (X,)], "differ in whether they have labels"),
        ([(X, Y[:3])], "10 inputs, 3 labels"),
        ([{"x": X, "y": Y, "label": Y}], "several labels"),
        ([X * float("nan")], "holds NaN"),
        ([X.to(torch.complex64)], "complex64"),
        ([np.array(["a"])], "give numbers"),
    ],
)
def test_bad_data(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        collect(data, None)  # type: ignore[arg-type]


def test_bad_size_and_shape() -> None:
    with pytest.raises(DataError, match="number of samples is 0"):
        collect(X, 0)
    with pytest.raises(DataError, match=r"shape \[3, 4, 4\], the network takes \[3, 5, 5\]"):
        collect(X, None, like=(torch.zeros(2, 3, 5, 5),))


class Once:
    """An iterable that can be gone through one time, and is no iterator itself."""

    def __init__(self) -> None:
        self.batches = iter(X.split(3))

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches


@pytest.mark.parametrize(
    "make",
    [
        lambda: (batch for batch in X.split(3)), Once, lambda: X.split(3), lambda: {"input": X},
        lambda: TensorDataset(X), lambda: DataLoader(TensorDataset(X), batch_size=3),
        lambda: ((batch, batch) for batch in X.split(3)),
    ],
)  # fmt: skip
def test_looking_at_the_first_element_loses_none(make: Callable[[], Any]) -> None:
    assert torch.equal(collect_calls(make(), nn.Identity()).data.inputs[0], X)
    metric = Function(lambda outputs, targets: float(len(outputs)))
    assert evaluate(nn.Identity(), make(), metric=metric, reference=nn.Identity()).samples == len(X)
