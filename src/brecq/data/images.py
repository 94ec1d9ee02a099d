"""Decode image files: many at a time, in a fixed order, naming what cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from brecq.errors import DataError
from brecq.reading import check_regular

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2"))

T = TypeVar("T")


class UnreadableError(Exception):
    """One file cannot be decoded; the message says why."""


def is_image(path: Path) -> bool:
    """By suffix; hidden files (such as macOS's `._photo.jpg`) are not pictures."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def read_image(path: Path, short_side: int | None = None) -> Image.Image:
    """The picture in `path`: upright (EXIF orientation applied), RGB, 8 bits a channel.

    Transparency is dropped as in torchvision's and timm's loaders, 16-bit gray is scaled to 8 bits, of an
    animation the first frame is taken. JPEG files much larger than needed are decoded at a fraction of their
    size, at least twice `short_side`, which leaves resizing quality to the resampling filter that follows.

    Raises:
        UnreadableError: for anything that cannot be decoded.
    """
    try:
        check_regular(path, DataError)  # opening a named pipe waits for ever
        with Image.open(path) as image:
            if short_side is not None:
                image.draft(None, (2 * short_side, 2 * short_side))
            return _to_rgb(ImageOps.exif_transpose(image))
    # Pillow's decoders raise whatever they stumble over: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise UnreadableError(_reason(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.getextrema()[1] > 255):  # type: ignore[operator]
        # Pillow's own conversion clips at 255, which turns most 16-bit pictures white
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 256).astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def map_ordered(
    function: Callable[[Path], T], paths: Sequence[Path], threads: int | None = None
) -> Generator[tuple[Path, T | UnreadableError], None, None]:
    """`function` of every path on a few threads, results in the order of `paths`, few of them waiting in memory.

    A path that raises `UnreadableError` yields the error in place of a result; other errors are raised.
    """

    def attempt(path: Path) -> T | UnreadableError:
        try:
            return function(path)
        except UnreadableError as error:
            return error

    threads = threads or min(8, os.cpu_count() or 1)
    remaining = iter(paths)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        pending = [(path, pool.submit(attempt, path)) for path in islice(remaining, 4 * threads)]
        try:
            while pending:
                path, future = pending.pop(0)
                pending += [(following, pool.submit(attempt, following)) for following in islice(remaining, 1)]
                yield path, future.result()
        finally:
            for _, future in pending:
                future.cancel()
