"""What a network is called with, call by call: inputs as they are collected, or lists of pictures of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brecq.data.collect import collect
from brecq.data.dataset import Dataset
from brecq.data.signature import Signature
from brecq.errors import DataError

PER_CALL = 4
"""Samples in a call: networks that are quantized in parts are large, and take large pictures."""


@dataclass(frozen=True)
class Calls:
    """Calibration data of a network, in calls of a few samples.

    Attributes:
        data: all samples. listed: the network takes a list of pictures [C, H, W], as detectors do. note: what was done
            to them; empty if nothing.
    """

    data: Dataset
    listed: bool
    note: str = ""

    def __iter__(self) -> Iterator[Any]:
        for inputs, _ in self.data.batches(PER_CALL):
            yield list(inputs[0]) if self.listed else self.data.arguments(inputs)

    def __len__(self) -> int:
        return len(self.data)


def collect_calls(data: Iterable[Any] | Tensor | Dataset, model: nn.Module) -> Calls:
    """The calls that `data` makes: what `collect` takes, or an iterable of lists of pictures.

    A list of tensors [C, H, W] is the one argument of a network that takes lists; of a pair (list of pictures,
    anything) the second part is left out, as detectors' data sets have it. Pictures of several sizes are padded on the
    right and at the bottom to the largest height and width, each with its own mean.

    Raises:
        DataError: as `collect`; pictures with different numbers of channels.
    """
    if isinstance(data, (Dataset, Tensor)) or not isinstance(data, Iterable):
        return Calls(collect(data, None, model=model), False)
    first, data = begun(data)
    if first is None or listed_pictures(first, model) is None:
        return Calls(collect(data, None, model=model), False)
    found: list[Tensor] = []
    for position, element in enumerate(data):
        pictures = pictures_of(element)
        if pictures is None:
            raise DataError(f"element {position} of the data is no list of pictures [C, H, W], as element 0 is")
        found += [picture.detach().cpu().float() for picture in pictures]
    channels = {picture.shape[0] for picture in found}
    if len(channels) > 1:
        raise DataError(f"there are pictures with {sorted(channels)} channels; give all the same number")
    height, width = (max(picture.shape[dim] for picture in found) for dim in (1, 2))
    sizes = {tuple(picture.shape[1:]) for picture in found}
    note = f"pictures of {len(sizes)} sizes, padded to {height} × {width}" if len(sizes) > 1 else ""
    return Calls(Dataset((torch.stack([_padded(picture, height, width) for picture in found]),)), True, note)


def begun(data: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first element, `None` if there is none, and the data with it: what is iterated over may be for one time."""
    elements = iter(data)
    first = next(elements, None)
    # what these hold is read otherwise than element by element, and begins anew
    kept = isinstance(data, (str, Mapping, list, tuple, np.ndarray))
    if kept or first is None:
        return first, data
    if isinstance(data, torch.utils.data.IterableDataset):  # these may return themselves, begun, when asked again
        return first, _Begun(chain([first], elements))
    return first, data if isinstance(data, torch.utils.data.Dataset) else chain([first], elements)


class _Begun(torch.utils.data.IterableDataset[Any]):
    """A data set of samples that is read once, from where it is."""

    def __init__(self, elements: Iterator[Any]) -> None:
        self.elements = elements

    def __iter__(self) -> Iterator[Any]:
        return self.elements


def listed_pictures(element: Any, model: nn.Module) -> list[Tensor] | None:
    """The pictures of an element of which the network takes a list; `None` where that is what it cannot take.

    A loader's batches of sequences [N, T, C] are lists of tensors of three dimensions, too: the network is asked.
    """
    pictures, takes = pictures_of(element), Signature(model).outputs
    if pictures is None or not isinstance(element[0], Tensor) or takes([pictures]) is not None:
        return pictures
    by_position = any(takes(parts) is not None for parts in (pictures, pictures[:-1]) if parts)
    return None if by_position else pictures


def pictures_of(element: Any) -> list[Tensor] | None:
    """The pictures of a list of them, or of a pair whose first part is one."""
    nested = isinstance(element, (list, tuple)) and element and isinstance(element[0], (list, tuple))
    listed = element[0] if nested else element
    if not isinstance(listed, (list, tuple)) or not listed or (not nested and isinstance(listed, tuple)):
        return None
    whole = all(isinstance(picture, Tensor) and picture.dim() == 3 for picture in listed)
    return list(listed) if whole else None


def _padded(picture: Tensor, height: int, width: int) -> Tensor:
    if picture.shape[1:] == (height, width):
        return picture
    whole = picture.mean((1, 2), keepdim=True).repeat(1, height, width)
    whole[:, : picture.shape[1], : picture.shape[2]] = picture
    return whole
