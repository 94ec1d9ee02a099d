"""Pairs of pictures: what the network is given, and what it should return."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from brecq.data.annotated import Annotated, Split, Target, folder_named, matched
from brecq.data.images import UnreadableError, read_image
from brecq.data.preprocessing import Preprocessing

_INPUTS = ("input", "inputs", "lq", "lr", "low", "noisy", "blur", "blurred", "degraded", "rainy", "hazy")
_TARGETS = ("target", "targets", "gt", "hq", "hr", "high", "clean", "sharp", "groundtruth", "ground_truth")


def find_pairs(path: Path, split: Split) -> Annotated | None:
    """The pairs in a folder (or its subfolder `split`): files of the same names in two subfolders, such as `input` and
    `target`, `noisy` and `clean`, `lr` and `hr`; `None` for a folder without them.

    Targets may be larger than inputs by a whole factor (super-resolution). They are float32 [3, H, W] in [0, 1], in
    the network's order of channels, placed as the inputs are.

    Raises:
        DataError: an input lacks its target.
    """
    for root in (path, path / split):
        inputs, targets = folder_named(root, _INPUTS), folder_named(root, _TARGETS)
        if inputs is not None and targets is not None:
            found = matched(inputs, targets, "target")
            return Annotated(root, sorted(found), _target(found), f"pairs of {inputs.name} and {targets.name}")
    return None


def _target(found: Mapping[Path, Path]) -> Target:
    def target(path: Path, image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
        try:
            picture = read_image(found[path])
        except UnreadableError as error:
            raise UnreadableError(f"its target {found[path].parent.name}/{found[path].name}: {error}") from error
        factor = picture.width // image.width
        if (picture.width, picture.height) != (factor * image.width, factor * image.height):
            raise UnreadableError(f"its target is {picture.size}, it is {image.size}; a whole factor is needed")
        return _plain(preprocessing, factor)(picture)

    return target


def _plain(preprocessing: Preprocessing, factor: int) -> Preprocessing:
    """The same placement on a picture and an input that are `factor` times as large, without normalization."""
    height, width = preprocessing.size
    resize = preprocessing.resize
    if isinstance(resize, tuple):
        resize = (resize[0] * factor, resize[1] * factor)
    return dataclasses.replace(
        preprocessing, mean=(0.0,), std=(1.0,), size=(height * factor, width * factor), multiple=1,
        resize=resize * factor if isinstance(resize, int) else resize,
    )  # fmt: skip


def as_pictures(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, C] or [N, H, W] as float32 [N, C, H, W] in [0, 1]."""
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 255
