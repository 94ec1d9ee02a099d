"""Stretch a few photographs into a calibration set: multi-scale random crops and flips."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from brecq.data.preprocessing import Preprocessing
from brecq.errors import DataError


def random_crops(
    images: Sequence[Image.Image | np.ndarray],
    n: int,
    preprocessing: Preprocessing,
    seed: int,
    *,
    area: tuple[float, float] = (0.1, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """`n` random crops, each image equally often, half of them mirrored; float32 [n, C, height, width], normalized.

    Crops are drawn as in Szegedy et al., "Going deeper with convolutions" (2015), section 6 (torchvision's
    `RandomResizedCrop`), except that areas are uniform on a logarithmic scale, which favours close-ups.

    Args:
        images: pictures, or uint8 pixels [H, W, 3] or [H, W].
        area: smallest and largest share of the picture that a crop covers.
        aspect: smallest and largest width/height of a crop, relative to that of the network input.
    """
    if not images or n < 1:
        raise DataError(f"got {len(images)} images to make {n} crops of; give at least one and ask for at least one")
    if not (0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]):
        raise DataError(f"area is {area} and aspect {aspect}; give positive ranges, the area at most 1")
    pictures = [
        (Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB") for image in images
    ]
    rng = np.random.default_rng(seed)
    direct = preprocessing.in_one_size().replace(resize=None)
    height, width = preprocessing.size
    output = torch.empty(n, preprocessing.channels, height, width)
    for index in range(n):
        picture = pictures[index % len(pictures)]
        share = math.exp(rng.uniform(math.log(area[0]), math.log(area[1])))
        ratio = width / height * math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        crop_width = math.sqrt(share * picture.width * picture.height * ratio)
        crop_height = crop_width / ratio
        # a crop that sticks out is shrunk, keeping its shape
        shrink = min(1.0, picture.width / crop_width, picture.height / crop_height)
        crop_width, crop_height = (max(1, int(side * shrink)) for side in (crop_width, crop_height))
        left = int(rng.integers(picture.width - crop_width + 1))
        top = int(rng.integers(picture.height - crop_height + 1))
        crop = picture.crop((left, top, left + crop_width, top + crop_height))
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        output[index] = direct(crop)
    return output
