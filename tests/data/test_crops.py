from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from brecq.data import Preprocessing, random_crops
from brecq.errors import DataError

PREPROCESSING = Preprocessing((0.0,), (1.0,), (16, 24), 20)


def test_every_photograph_gives_equally_many_crops() -> None:
    images = [Image.new("RGB", (50, 30), (level,) * 3) for level in (0, 51, 255)]
    crops = random_crops(images, 9, PREPROCESSING, seed=0)
    assert (crops.shape, crops.dtype) == ((9, 3, 16, 24), torch.float32)
    assert torch.allclose(crops.mean((1, 2, 3)), torch.tensor([0.0, 0.2, 1.0] * 3))  # whole, without borders


def test_crops_differ_in_scale_place_and_direction_and_repeat_with_the_seed() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 128, 0).repeat(3, 2)
    crops = random_crops([ramp], 64, PREPROCESSING, seed=0)
    assert torch.equal(crops, random_crops([ramp], 64, PREPROCESSING, seed=0))
    assert not torch.equal(crops, random_crops([ramp], 64, PREPROCESSING, seed=1))
    slope = crops[:, 0, 8, -1] - crops[:, 0, 8, 0]
    assert 16 < int((slope > 0).sum()) < 48  # mirrored half of the time
    assert slope.abs().max() / slope.abs().min() > 2


def test_extreme_pictures() -> None:
    thin = np.zeros((2, 500), np.uint8)
    assert random_crops([thin, Image.new("RGBA", (1, 1))], 20, PREPROCESSING, seed=0).shape == (20, 3, 16, 24)


@pytest.mark.parametrize(
    ("images", "n", "options"),
    [([], 1, {}), ([Image.new("RGB", (4, 4))], 0, {}), ([Image.new("RGB", (4, 4))], 1, {"area": (0.5, 2.0)})],
)
def test_bad_arguments(images: list[Image.Image], n: int, options: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(DataError, match="give"):
        random_crops(images, n, PREPROCESSING, 0, **options)
