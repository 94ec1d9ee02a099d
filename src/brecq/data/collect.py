"""Bring whatever holds tensors into a `Dataset`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brecq.data.dataset import Dataset, check
from brecq.data.signature import LABEL_KEYS, Layout, Signature, is_class_index
from brecq.errors import DataError


def collect(
    data: Iterable[Any] | Tensor | Dataset,
    size: int | None,
    like: tuple[Tensor, ...] | None = None,
    model: nn.Module | None = None,
) -> Dataset:
    """The first `size` samples of `data` (`None`: all), in order, on the CPU, floating point as float32.

    `data` is a `Dataset`, a tensor [N, ...], a dictionary, a `torch.utils.data.Dataset` (of samples), or an iterable
    such as a `DataLoader` or a list. Its elements are batches: tensors, tuples of tensors, dictionaries, or a
    dictionary of inputs and the label beside it. What of them is an input and what a label is decided by the signature
    of the `model`'s `forward`: dictionaries by their keys (labels under `label`, `labels`, `y`, `target` or
    `targets`), tuples by position, a part that `forward` has no place for being the label (a parameter with a number
    as its default is none: name it in a dictionary). Elements are taken for single samples when a part of them is a
    single number, or when they lack one dimension of `like`. An iterator is read only as far as needed. With fewer
    samples than asked for all are used, with a warning.

    Args:
        like: inputs that the network takes; their shapes after the first dimension must agree.
        model: the network; without one, integers with one number a sample at the end of a tuple are labels.

    Raises:
        DataError: no samples, elements of other types or of unequal shapes, NaN or infinite values, keys that
            `forward` does not know, inputs that it needs and that are missing.
    """
    if size is not None and size < 1:
        raise DataError(f"the number of samples is {size}; ask for at least 1")
    parts: list[Dataset] = []
    for position, part in enumerate(stream(data, like, model)):
        if parts:
            _check_alike(parts[0], part, position)
        parts.append(part)
        if size is not None and sum(map(len, parts)) >= size:
            break
    if not parts:
        raise DataError("the data holds no samples; give at least one (an exhausted generator is empty, too)")
    dataset = parts[0] if len(parts) == 1 else _join(parts)
    if size is not None and len(dataset) > size:
        dataset = dataset.subset(slice(0, size))
    if size is not None and len(dataset) < size:
        warnings.warn(
            f"the data holds {len(dataset)} samples, fewer than the {size} asked for: using all", stacklevel=2
        )
    check(dataset, like=like)
    return dataset


def stream(
    data: Iterable[Any] | Tensor | Dataset, like: tuple[Tensor, ...] | None = None, model: nn.Module | None = None
) -> Iterator[Dataset]:
    """The batches of `data`, as `collect` takes them, one after the other; an element may be a `Dataset`, too."""
    if isinstance(data, (str, Path)):
        raise DataError(f"data is the path {str(data)!r}; read it with brecq.data.load_data first")
    signature = None if model is None else Signature(model)
    samples = isinstance(data, torch.utils.data.IterableDataset)
    if isinstance(data, (Dataset, Tensor, np.ndarray, Mapping)):
        data = (data,)
    elif isinstance(data, torch.utils.data.Dataset) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        # map-style datasets need not stop iterating: `for x in dataset` relies on IndexError
        data, samples = map(data.__getitem__, range(len(data))), True
    elif not isinstance(data, Iterable):
        raise DataError(f"the data is a {type(data).__name__}; give a tensor [N, ...] or an iterable of batches")
    layout: Layout | None = None
    for position, element in enumerate(data):
        if isinstance(element, Dataset):
            yield element if signature is None else signature.bind(element)
            continue
        name = f"element {position} of the data"
        given = _parts(element, signature, name)
        parts = _batched(given, samples, like, name)
        layout = layout or _layout(parts, signature, name)
        found = _dataset(parts, layout, signature, name)
        yield found if samples else replace(found, origin=f"{found.origin}{_numbers(given, layout, signature)}")


Parts = dict[str, Any] | dict[int, Any]
"""What an element of the data holds, by name or by position: tensors on the CPU, other things as they are."""


def _parts(element: Any, signature: Signature | None, name: str) -> Parts:
    if hasattr(element, "_asdict") and signature is not None and signature.knows(element._fields):
        element = element._asdict()  # a named tuple whose names are those of `forward`
    elif isinstance(element, (tuple, list)) and [isinstance(part, Mapping) for part in element] == [True, False]:
        inputs, label = element
        known = () if signature is None else signature.names
        element = {**inputs, next(key for key in (*LABEL_KEYS, "") if key not in (*inputs, *known)): label}
    if isinstance(element, Mapping):
        names: list[Any] = list(element) if signature is None else signature.own_names(list(element))
        found: Parts = {name: value for name, value in zip(names, element.values(), strict=True) if value is not None}
    else:
        found = dict(enumerate(element if isinstance(element, (tuple, list)) else (element,)))
    if not found:
        raise DataError(f"{name} holds no inputs; give tensors, tuples (input, label) or dictionaries of tensors")
    return {key: _to_tensor(value, name) for key, value in found.items()}  # type: ignore[return-value]


def _batched(parts: Parts, samples: bool, like: tuple[Tensor, ...] | None, name: str) -> Parts:
    """A batch dimension for single samples."""
    tensors = [value for value in parts.values() if isinstance(value, Tensor)]
    if not samples and len(tensors) == len(parts) == 1 and not tensors[0].ndim:
        raise DataError(f"{name} is a single number; give batches [B, ...]")
    lacking = like is not None and [x.ndim for x in tensors[: len(like)]] == [x.ndim - 1 for x in like]
    if samples or lacking or not all(x.ndim for x in tensors):
        return {key: _alone(value) for key, value in parts.items()}  # type: ignore[return-value]
    return parts


def _numbers(parts: Parts, layout: Layout, signature: Signature | None) -> str:
    """What a single number among the inputs makes of an element that may have been meant as a batch; usually empty."""
    values: dict[Any, Any] = dict(parts)
    called = dict(zip(layout.inputs, layout.names(signature), strict=True))
    numbers = [
        called[place] for place in layout.inputs if isinstance(values[place], Tensor) and not values[place].ndim
    ]
    if not numbers:
        return ""
    return (
        f"; {', '.join(numbers)}: a single number, so each element is taken for one sample (a batch has [B] numbers)"
    )


def _alone(value: Any) -> Any:
    if isinstance(value, Mapping):  # a target, such as boxes and their classes
        return [value]
    return value[None] if isinstance(value, Tensor) else value


def _layout(parts: Parts, signature: Signature | None, name: str) -> Layout:
    names = [key for key in parts if isinstance(key, str)]
    if names and signature is not None:
        return signature.by_name({key: value for key, value in parts.items() if isinstance(key, str)}, name)
    if signature is not None:
        return signature.by_place(list(parts.values()), name)
    if names:
        labels = [key for key in names if key in LABEL_KEYS]
        if len(labels) > 1:
            raise DataError(f"{name} has several labels ({', '.join(labels)}); keep one of them")
        return Layout(tuple(key for key in names if key not in labels), labels[0] if labels else None)
    values = list(parts.values())
    labelled = len(values) > 1 and _is_label(values[-1], values[0])
    return Layout(tuple(range(len(values) - labelled)), len(values) - 1 if labelled else None)


def _is_label(value: Any, first: Any) -> bool:
    """Integers, one number a sample: a second input of token ids would have the shape of the first one."""
    return isinstance(value, Tensor) and not value.is_floating_point() and value.ndim < max(np.ndim(first), 2)


def _dataset(parts: Parts, layout: Layout, signature: Signature | None, name: str) -> Dataset:
    """One element, laid out as the first one was."""
    values: dict[Any, Any] = dict(parts)
    expected = {*layout.inputs, *(() if layout.label is None else (layout.label,))}
    if expected - {layout.label} == values.keys() - {layout.label} and expected != values.keys():
        raise DataError(f"{name} and element 0 of the data differ in whether they have labels; give all or none")
    if expected != values.keys():
        raise DataError(
            f"{name} holds the parts {_listed(values)}, element 0 {_listed(expected)}; give the same in all"
        )
    inputs = [_to_input(values[place], name) for place in layout.inputs]
    labels = values.get(layout.label)
    if isinstance(labels, Tensor) and labels.ndim > 1 and labels.numel() == len(inputs[0]):
        labels = labels.flatten()
    usable = is_class_index(labels)
    keys = tuple(place for place in layout.inputs if isinstance(place, str))
    if keys and signature is not None and signature.only_by_position:
        keys = ()
    origin = layout.describe(signature, usable=usable)
    targets = labels if labels is not None and not usable and _counts(labels, len(inputs[0])) else None
    return Dataset(tuple(inputs), labels if usable else None, keys=keys, origin=origin, targets=targets)


def _counts(values: Any, samples: int) -> bool:
    """Whether these are targets, one a sample."""
    many = isinstance(values, (tuple, list)) or (isinstance(values, Tensor) and values.ndim > 0)
    return many and len(values) == samples


def _to_tensor(value: Any, name: str) -> Any:
    """A tensor on the CPU, floating point as float32, where the value is one or an array; otherwise as it is."""
    if not isinstance(value, (Tensor, np.ndarray, np.generic, int, float)):
        return value
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except TypeError as error:
        raise DataError(f"{name} has type {getattr(value, 'dtype', type(value))}; give numbers") from error
    if tensor.is_complex():
        raise DataError(f"{name} is {tensor.dtype}; give real numbers")
    return tensor.float() if tensor.is_floating_point() else tensor


def _to_input(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise DataError(
            f"{name} is a {type(value).__name__}; give tensors, tuples (input, label) or dictionaries of them"
        )
    return value


def _listed(places: Iterable[Any]) -> str:
    return ", ".join(sorted(str(place) for place in places))


def _join(parts: list[Dataset]) -> Dataset:
    columns = zip(*(part.inputs for part in parts), strict=True)
    labels = [part.labels for part in parts if part.labels is not None]
    targets = [target for part in parts for target in (() if part.targets is None else part.targets)]
    return Dataset(
        tuple(torch.cat(column) for column in columns),
        torch.cat(labels) if labels else None,
        [name for part in parts for name in part.names],
        [file for part in parts for file in part.skipped],
        parts[0].keys,
        parts[0].origin,
        targets if len(targets) == sum(map(len, parts)) else None,
    )


def _check_alike(first: Dataset, other: Dataset, position: int) -> None:
    shapes = [[list(x.shape[1:]) for x in part.inputs] for part in (first, other)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"samples in element {position} of the data have shape {shapes[1]}, those in element 0 {shapes[0]}; "
            "bring all to one size"
        )
    if (first.labels is None) != (other.labels is None) or first.keys != other.keys:
        raise DataError(
            f"element {position} of the data and element 0 differ in whether they have labels; give all or none"
        )
