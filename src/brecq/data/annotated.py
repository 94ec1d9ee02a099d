"""Pictures with targets: which files belong together, and what the target of each is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from brecq.data.images import is_image
from brecq.data.preprocessing import Preprocessing
from brecq.errors import DataError

Split = Literal["train", "val"]
"""Which part of a data set: what is calibrated on, or what is evaluated on."""

Target = Callable[[Path, Image.Image, Preprocessing], Any]
"""The target of a picture: its file, its pixels as decoded, and how they become the network's input."""


@dataclass(frozen=True)
class Annotated:
    """Pictures, sorted by name, and their targets. `origin`: where these come from, for people."""

    root: Path
    paths: Sequence[Path]
    target: Target
    origin: str


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder and its subfolders, sorted."""
    return sorted(path for path in folder.rglob("*") if is_image(path) and path.is_file())


def by_stem(folder: Path) -> dict[str, Path]:
    """The pictures in a folder and its subfolders by their path without suffix."""
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in pictures_in(folder)}


def matched(pictures: Path, targets: Path, what: str) -> dict[Path, Path]:
    """Each picture of one folder with the file of the same name in another.

    Raises:
        DataError: one has no partner.
    """
    partners = by_stem(targets)
    found: dict[Path, Path] = {}
    missing: list[str] = []
    for stem, path in by_stem(pictures).items():
        if stem in partners:
            found[path] = partners[stem]
        else:
            missing.append(path.name)
    if not found:
        raise DataError(f"no file in {targets} is named as one in {pictures} is; a {what} has its picture's name")
    if missing:
        raise DataError(
            f"{len(missing)} pictures in {pictures} have no {what} in {targets}, such as {missing[0]}; add them, or "
            "take the pictures away"
        )
    return found


def folder_named(root: Path, names: Sequence[str]) -> Path | None:
    """The subfolder of one of these names, in upper or lower case."""
    if not os.path.isdir(root):  # also of names that no system has, of which pathlib raises
        return None
    present: Mapping[str, Path] = {each.name.lower(): each for each in sorted(root.iterdir()) if each.is_dir()}
    return next((present[name] for name in names if name in present), None)
