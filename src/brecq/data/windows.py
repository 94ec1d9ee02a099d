"""Pictures of several sizes, as a detector of torchvision resizes them itself, brought to one size behind that.

What is learned is recorded in tensors of one size. Pictures that were padded or fitted before the detector's own
resizing would have objects of another scale than in use; of a picture that it has resized, the middle has theirs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from brecq.forward import evaluating

Size = tuple[int, int]
"""Height and width."""


def transform_of(model: nn.Module) -> Any | None:
    """The module with which a detector of torchvision resizes and batches pictures; `None` in other networks."""
    known = sys.modules.get("torchvision.models.detection.transform")
    if known is None:
        return None
    return next((each for each in model.modules() if isinstance(each, known.GeneralizedRCNNTransform)), None)


def window_of(transform: Any, sizes: Iterable[Size]) -> tuple[Size, bool]:
    """The one size that pictures of these sizes have behind the detector's resizing, and whether that takes a window.

    Where they differ it is the smallest height and the smallest width, and not less than what the detector resizes
    the short side to: of a longer picture the middle is taken, a smaller one is padded.
    """
    step = int(transform.size_divisible)
    found: list[Size] = []
    with evaluating(transform), torch.no_grad():
        for height, width in sorted(set(sizes)):
            resized, _ = transform.resize(torch.zeros(1, height, width), None)
            found.append((_up(resized.shape[1], step), _up(resized.shape[2], step)))
    least = _up(int(transform.min_size[-1]), step)
    height, width = (max(min(least, max(sides)), min(sides)) for sides in zip(*found, strict=True))
    return (height, width), len(set(found)) > 1


@contextmanager
def windowed(model: nn.Module, window: Size | None) -> Iterator[None]:
    """The detector gives its parts that much of each picture that it has resized; as it is without a window."""
    transform = transform_of(model)
    if transform is None or window is None:
        yield
        return
    height, width = window
    resize = transform.resize

    def resize_and_cut(image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        resized, target = resize(image, target)
        top, left = (max(resized.shape[dim] - side, 0) // 2 for dim, side in ((1, height), (2, width)))
        return resized[:, top : top + height, left : left + width], target

    def batch(images: Sequence[Tensor], size_divisible: int = 32) -> Tensor:
        batched = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for place, image in zip(batched, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        return batched

    transform.resize, transform.batch_images = resize_and_cut, batch
    try:
        yield
    finally:
        del transform.resize, transform.batch_images


def _up(side: int, step: int) -> int:
    return -(-side // step) * step
