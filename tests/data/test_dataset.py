from __future__ import annotations

import pytest
import torch

from brecq.data import Dataset, check
from brecq.errors import DataError


def dataset(n: int = 5, **changes: object) -> Dataset:
    values: dict[str, object] = {"inputs": (torch.randn(n, 3, 4, 4),), "labels": torch.arange(n)}
    return Dataset(**(values | changes))  # type: ignore[arg-type]


def test_batches_hold_all_samples_in_order() -> None:
    data = dataset(65)
    batches = list(data.batches(64))
    assert [len(inputs[0]) for inputs, _ in batches] == [32, 33]  # never a batch of one
    assert torch.equal(torch.cat([inputs[0] for inputs, _ in batches]), data.inputs[0])
    with pytest.raises(DataError, match="batch size is 0"):
        list(data.batches(0))


def test_subset_takes_inputs_labels_and_names() -> None:
    data = dataset(4, names=["a", "b", "c", "d"])
    part = data.subset(torch.tensor([2, 0]))
    assert (part.names, part.labels.tolist()) == (["c", "a"], [2, 0])  # type: ignore[union-attr]
    assert torch.equal(part.inputs[0], data.inputs[0][[2, 0]])
    assert data.subset(slice(1, 3)).names == ["b", "c"]


def test_digest_depends_on_content_only() -> None:
    data = dataset(100)
    same = Dataset(tuple(x.clone() for x in data.inputs), data.labels, [str(i) for i in range(100)])
    assert data.digest() == same.digest()
    changed = data.inputs[0].clone()
    changed[99, 0, 0, 0] += 1
    others = [
        Dataset((changed,), data.labels),
        Dataset(data.inputs),
        Dataset((data.inputs[0].view(100, 3, 2, 8),), data.labels),
        Dataset((data.inputs[0].double(),), data.labels),
    ]
    assert len({d.digest() for d in (data, *others)}) == 5
    assert Dataset((torch.arange(6, dtype=torch.float32).view(2, 3),)).digest() == (
        Dataset((torch.arange(6, dtype=torch.float32).view(3, 2).T.contiguous().T.reshape(2, 3),)).digest()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "at least one input tensor"),
        ({"inputs": (torch.tensor(1.0),)}, "input 0 is a single number"),
        ({"inputs": (torch.randn(5, 2), torch.tensor(1.0)), "keys": ("x", "scale")}, "scale is a single number"),
        ({"inputs": (torch.randn(0, 3),), "labels": None}, "holds no samples"),
        ({"labels": torch.arange(4)}, "5 inputs, 4 labels"),
        ({"labels": torch.rand(5)}, "labels are torch.float32"),
        ({"labels": torch.zeros(5, 10, dtype=torch.long)}, r"labels are torch.int64 \[5, 10\]"),
        ({"names": ["a"]}, "1 names"),
        ({"inputs": (torch.randn(5, 2), torch.randn(4, 2))}, "4 input 1"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataset(**changes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_check_names_the_first_sample_that_is_not_finite(value: float) -> None:
    data = dataset(100, names=[f"{i}.jpg" for i in range(100)])
    data.inputs[0][70, 1, 2, 3] = value
    with pytest.raises(DataError, match=r"sample 70 \(70.jpg\) holds NaN or infinite"):
        check(data)


def test_check_shapes() -> None:
    check(dataset(), like=(torch.randn(2, 3, 4, 4),))
    with pytest.raises(DataError, match=r"shape \[3, 4, 4\], the network takes \[3, 8, 8\]"):
        check(dataset(), like=(torch.randn(2, 3, 8, 8),))
    with pytest.raises(DataError, match=r"the network takes \[3, 4, 4\], \[2\]"):
        check(dataset(), like=(torch.randn(2, 3, 4, 4), torch.randn(2, 2)))
