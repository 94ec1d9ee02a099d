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
from brecq.data.pictures import Pictures
from brecq.data.signature import Signature
from brecq.data.windows import Size, transform_of, window_of
from brecq.errors import DataError

PER_CALL = 4
"""Samples in a call: networks that are quantized in parts are large, and take large pictures."""


@dataclass(frozen=True)
class Calls:
    """Calibration data of a network, in calls of a few samples.

    Attributes:
        data: all samples. listed: the network takes a list of pictures [C, H, W], as detectors do. note: what was done
            to them; empty if nothing. window: of a detector of torchvision the height and width that its parts get of
            the pictures that it has resized; `None` of other networks.
    """

    data: Dataset | Pictures
    listed: bool
    note: str = ""
    window: Size | None = None

    def __iter__(self) -> Iterator[Any]:
        if self.listed and isinstance(self.data, Dataset):  # padded to one size
            return (list(inputs[0]) for inputs, _ in self.data.batches(PER_CALL))
        return self.data.calls(PER_CALL)

    def __len__(self) -> int:
        return len(self.data)


def collect_calls(data: Iterable[Any] | Tensor | Dataset | Pictures, model: nn.Module) -> Calls:
    """The calls that `data` makes: what `collect` takes, or an iterable of lists of pictures.

    A list of tensors [C, H, W] is the one argument of a network that takes lists; of a pair (list of pictures,
    anything) the second part is left out, as detectors' data sets have it. Pictures of several sizes stay as they are
    for a detector of torchvision, of which a `window` is recorded; for other networks they are padded on the right and
    at the bottom to the largest height and width, each with its own mean.

    Raises:
        DataError: as `collect`; pictures with different numbers of channels.
    """
    if isinstance(data, Pictures):
        return _of_pictures(data, model)
    if isinstance(data, (Dataset, Tensor)) or not isinstance(data, Iterable):
        return _of_tensors(collect(data, None, model=model), model)
    first, data = begun(data)
    if first is None or listed_pictures(first, model) is None:
        return _of_tensors(collect(data, None, model=model), model)
    found: list[Tensor] = []
    for position, element in enumerate(data):
        pictures = pictures_of(element)
        if pictures is None:
            raise DataError(f"element {position} of the data is no list of pictures [C, H, W], as element 0 is")
        found += [picture.detach().cpu().float() for picture in pictures]
    channels = {picture.shape[0] for picture in found}
    if len(channels) > 1:
        raise DataError(f"there are pictures with {sorted(channels)} channels; give all the same number")
    return _of_pictures(Pictures(found), model)


def _of_tensors(data: Dataset, model: nn.Module) -> Calls:
    transform = transform_of(model)
    if transform is None or data.inputs[0].ndim != 4:
        return Calls(data, False)
    height, width = data.inputs[0].shape[-2:]
    return Calls(data, False, window=window_of(transform, [(height, width)])[0])


def _of_pictures(data: Pictures, model: nn.Module) -> Calls:
    """As they are for a detector of torchvision, which resizes them itself; for others padded to the largest."""
    sizes = data.sizes
    if (transform := transform_of(model)) is not None:
        (height, width), cut = window_of(transform, sizes)
        note = (
            f"pictures of {len(sizes)} sizes: of each, as the detector resizes it, the middle {height} × {width}, "
            "padded where it is smaller"
        )
        return Calls(data, True, note if cut else "", (height, width))
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    note = f"pictures of {len(sizes)} sizes, padded to {height} × {width}" if len(sizes) > 1 else ""
    padded = torch.stack([_padded(picture, height, width) for picture in data.pictures])
    return Calls(Dataset((padded,), names=list(data.names), skipped=data.skipped), True, note)


def begun(data: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first element, `None` if there is none, and the data with it: what is iterated over may be for one time."""
    if isinstance(data, np.ndarray):  # one of a single number cannot be iterated over
        return (data[0] if data.ndim and len(data) else None), data
    elements = iter(data)
    first = next(elements, None)
    # what these hold is read otherwise than element by element, and begins anew
    kept = isinstance(data, (str, Mapping, list, tuple))
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
