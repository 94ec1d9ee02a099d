"""Masks of classes: PASCAL VOC's folders, or pictures and masks of the same names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from brecq.data.annotated import Annotated, Split, folder_named, matched, pictures_in
from brecq.data.images import UnreadableError
from brecq.data.preprocessing import Preprocessing
from brecq.errors import DataError
from brecq.labels import IGNORED

OUTSIDE = 255
"""The class of pixels that do not count, VOC's borders among them."""

_PICTURES = ("images", "image", "jpegimages", "imgs")
_MASKS = ("masks", "mask", "segmentationclass", "segmentationclassraw", "labels", "annotations", "labelids")


def find_masks(path: Path, split: Split) -> Annotated | None:
    """The pictures and masks in a folder: VOC's `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation`, or
    `images` and `masks`, in `path` itself or in its subfolders of both; `None` for a folder without any of these.

    Raises:
        DataError: a picture lacks its mask.
    """
    root = next((each for each in (path, *sorted(path.glob("VOC*")), path / split) if _folders(each)), None)
    folders = None if root is None else _folders(root)
    if root is None or folders is None:
        return None
    pictures, masks = folders
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if listed.is_file():  # of VOC's pictures few have a mask
        names = listed.read_text(encoding="utf-8").split()
        found = {pictures / f"{name}.jpg": masks / f"{name}.png" for name in names}
        missing = [str(file) for pair in found.items() for file in pair if not file.is_file()]
        if missing:
            raise DataError(f"{listed} names {missing[0]}, which is not there ({len(missing)} files are missing)")
    else:
        subfolders = (pictures / split, masks / split)
        found = matched(*(subfolders if all(each.is_dir() for each in subfolders) else folders), "mask")
    if not found:
        raise DataError(f"{listed} names no pictures")

    def target(path: Path, image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
        return torch.from_numpy(preprocessing.place_mask(_read_mask(found[path], image), OUTSIDE))

    return Annotated(root, sorted(found), target, f"masks in {masks}; class {OUTSIDE} does not count")


def masks_beside(root: Path) -> tuple[Path, Path] | None:
    """The folders of pictures and masks in `root`, where both hold pictures: they are no classes."""
    folders = _folders(root)
    return folders if folders is not None and all(map(pictures_in, folders)) else None


def _folders(root: Path) -> tuple[Path, Path] | None:
    pictures, masks = folder_named(root, _PICTURES), folder_named(root, _MASKS)
    return None if pictures is None or masks is None else (pictures, masks)


def _read_mask(file: Path, image: Image.Image) -> Image.Image:
    """Class indices, as a picture of mode L."""
    name = f"{file.parent.name}/{file.name}"  # its picture has the same name
    try:
        with Image.open(file) as mask:
            if mask.mode not in ("L", "P", "1", "I", "I;16"):
                raise UnreadableError(
                    f"{name} is of mode {mask.mode}; a mask holds a class index a pixel (modes L, P, I, I;16 and 1)"
                )
            if mask.size != image.size:
                raise UnreadableError(f"{name} is {mask.size}, its picture {image.size}")
            values = np.asarray(mask).astype(np.int64)  # of a palette the indices, not the colors
            values[values == IGNORED] = OUTSIDE
            if values.min(initial=0) < 0 or values.max(initial=0) > OUTSIDE:
                wrong = values[(values < 0) | (values > OUTSIDE)][0]
                raise UnreadableError(f"{name} holds class {wrong}; masks hold 0 to {OUTSIDE}, or {IGNORED}")
            return Image.fromarray(values.astype(np.uint8))
    except OSError as error:
        raise UnreadableError(f"{name}: {error}") from error
