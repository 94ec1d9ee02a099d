"""Bring whatever holds tensors into a `Dataset`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brecq.data.dataset import Dataset, check
from brecq.errors import DataError

LABEL_KEYS = ("label", "labels", "y", "target", "targets")


def collect(
    data: Iterable[Any] | Tensor | Dataset, size: int | None, like: tuple[Tensor, ...] | None = None
) -> Dataset:
    """The first `size` samples of `data` (`None`: all), in order, on the CPU, floating point as float32.

    `data` is a `Dataset`, a tensor [N, ...], a `torch.utils.data.Dataset` (of samples), or an iterable such as a
    `DataLoader` or a list. Its elements are batches: tensors, tuples of tensors (a last one of integers, one a
    sample, is the labels), or dictionaries (labels under `label`, `labels`, `y`, `target` or `targets`). Elements are
    taken for single samples when their label is a single number, or when they lack one dimension of `like`.
    An iterator is read only as far as needed. With fewer samples than asked for all are used, with a warning.

    Args:
        like: inputs that the network takes; their shapes after the first dimension must agree.

    Raises:
        DataError: no samples, elements of other types or of unequal shapes, NaN or infinite values.
    """
    if size is not None and size < 1:
        raise DataError(f"the number of samples is {size}; ask for at least 1")
    if isinstance(data, (str, Path)):
        raise DataError(f"data is the path {str(data)!r}; read it with brecq.data.load_data first")
    if isinstance(data, Dataset):
        dataset = data if size is None or len(data) <= size else data.subset(slice(0, size))
    elif isinstance(data, (Tensor, np.ndarray)):
        tensor = _to_tensor(data, "the data", pixels=True)
        if not tensor.ndim:
            raise DataError(f"the data is the single number {tensor.item()}; give a tensor [N, ...]")
        dataset = Dataset((tensor[:size],))
    else:
        dataset = _gather(data, size, like)
    if size is not None and len(dataset) < size:
        warnings.warn(
            f"the data holds {len(dataset)} samples, fewer than the {size} asked for: using all", stacklevel=2
        )
    check(dataset, like=like)
    return dataset


def _gather(data: Iterable[Any], size: int | None, like: tuple[Tensor, ...] | None) -> Dataset:
    if isinstance(data, torch.utils.data.Dataset) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        # map-style datasets need not stop iterating: `for x in dataset` relies on IndexError
        data, samples = map(data.__getitem__, range(len(data))), True
    else:
        samples = isinstance(data, torch.utils.data.IterableDataset)
    if not isinstance(data, Iterable):
        raise DataError(f"the data is a {type(data).__name__}; give a tensor [N, ...] or an iterable of batches")
    batches: list[tuple[list[Tensor], Tensor | None]] = []
    count = 0
    for position, element in enumerate(data):
        inputs, labels = _split(element, f"element {position} of the data")
        if samples or (labels is not None and labels.ndim == 0) or _lacks_batch(inputs, like):
            inputs = [x[None] for x in inputs]
            labels = labels.reshape(1) if labels is not None and labels.numel() == 1 else labels
        if not all(x.ndim for x in inputs):
            raise DataError(f"element {position} of the data is a single number; give batches [B, ...]")
        if batches:
            _check_alike(batches[0], (inputs, labels), position)
        batches.append((inputs, labels))
        count += len(inputs[0])
        if size is not None and count >= size:
            break
    if not batches:
        raise DataError("the data holds no samples; give at least one (an exhausted generator is empty, too)")
    columns = [torch.cat(column)[:size] for column in zip(*(inputs for inputs, _ in batches), strict=True)]
    targets = [target for _, target in batches if target is not None]
    return Dataset(tuple(columns), torch.cat(targets)[:size] if targets else None)


def _split(element: Any, name: str) -> tuple[list[Tensor], Tensor | None]:
    """Inputs and labels of one element; labels of any integer type and shape [B] or []."""
    if isinstance(element, Mapping):
        labels = [value for key, value in element.items() if key in LABEL_KEYS and value is not None]
        values = [value for key, value in element.items() if key not in LABEL_KEYS]
        if len(labels) > 1:
            raise DataError(f"{name} has several labels ({', '.join(map(str, element))}); keep one of them")
    elif isinstance(element, (tuple, list)):
        values, labels = list(element), []
        if len(values) > 1 and _is_label(values[-1], values[0]):
            labels = [values.pop()]
    else:
        values, labels = [element], []
    if not values:
        raise DataError(f"{name} holds no inputs; give tensors, tuples (input, label) or dictionaries of tensors")
    inputs = [_to_tensor(value, name, pixels=True) for value in values]
    return inputs, _to_tensor(labels[0], f"the label of {name}") if labels else None


def _is_label(value: Any, first: Any) -> bool:
    if isinstance(value, (int, np.integer)):
        return True
    if not isinstance(value, (Tensor, np.ndarray)):
        return False
    tensor = torch.as_tensor(value)
    # a second input of token ids has the shape of the first one, labels have one number a sample
    return not (tensor.is_floating_point() or tensor.is_complex()) and (
        not tensor.ndim or tensor.ndim < np.ndim(first)
    )


def _to_tensor(value: Any, name: str, *, pixels: bool = False) -> Tensor:
    if not isinstance(value, (Tensor, np.ndarray, np.generic, int, float)):
        raise DataError(
            f"{name} is a {type(value).__name__}; give tensors, tuples (input, label) or dictionaries of them"
        )
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except TypeError as error:
        raise DataError(f"{name} has type {getattr(value, 'dtype', type(value))}; give numbers") from error
    if tensor.is_complex():
        raise DataError(f"{name} is {tensor.dtype}; give real numbers")
    if pixels and tensor.dtype == torch.uint8 and tensor.ndim >= 3:
        raise DataError(
            f"{name} holds uint8 pixels of shape {list(tensor.shape)}; normalize them to float32 [N, 3, H, W] first "
            "(brecq.data.Preprocessing does)"
        )
    return tensor.float() if tensor.is_floating_point() else tensor


def _lacks_batch(inputs: list[Tensor], like: tuple[Tensor, ...] | None) -> bool:
    return like is not None and [x.ndim for x in inputs] == [x.ndim - 1 for x in like]


def _check_alike(
    first: tuple[list[Tensor], Tensor | None], other: tuple[list[Tensor], Tensor | None], position: int
) -> None:
    shapes = [[list(x.shape[1:]) for x in inputs] for inputs, _ in (first, other)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"samples in element {position} of the data have shape {shapes[1]}, those in element 0 {shapes[0]}; "
            "bring all to one size"
        )
    if (first[1] is None) != (other[1] is None):
        raise DataError(
            f"element {position} of the data and element 0 differ in whether they have labels; give all or none"
        )
