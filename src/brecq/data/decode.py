"""Decode the pictures of a folder into what a network takes, leaving out what cannot be read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brecq.data.annotated import Annotated
from brecq.data.dataset import Dataset, unreadable
from brecq.data.images import UnreadableError, map_ordered, read_image
from brecq.data.pictures import Pictures
from brecq.data.preprocessing import Preprocessing
from brecq.errors import DataError
from brecq.text import printable

NAMED = 20
"""Unreadable files that an error names."""


@dataclass
class Skipped:
    """Files that cannot be read, `share` of `total` at most. `files`: `NAME: REASON`; `seen`: files tried so far."""

    root: Path
    share: float
    total: int
    files: list[str] = field(default_factory=list)
    seen: int = 0

    def check(self) -> None:
        """To be called when all of a part have been tried: then all of them can be mended at once.

        Raises:
            DataError: these are too many.
        """
        allowed = max(1, int(self.share * self.total)) if self.share else 0  # of a handful no share is a whole one
        if len(self.files) > allowed:
            left = self.total - self.seen
            untried = f" ({left} were not tried yet)" if left > 0 else ""
            raise DataError(
                f"{len(self.files)} of {max(self.total, self.seen)} images in {self.root} cannot be read{untried}, "
                f"more than the {self.share:.1%} that may be skipped: {self._named()}; remove or repair them, or "
                "allow for more (max_skipped, --max-skipped)"
            )

    def all_of_them(self) -> DataError:
        return DataError(f"none of the images in {self.root} can be read: {self._named()}; repair them")

    def _named(self) -> str:
        more = len(self.files) - NAMED
        return "; ".join(self.files[:NAMED]) + (f"; and {more} more" if more > 0 else "")

    def tell(self, path: Path | str) -> None:
        if self.files:
            warnings.warn(f"{path}: {unreadable(self.files)}", stacklevel=3)


@dataclass(frozen=True)
class Folder:
    root: Path
    paths: Sequence[Path]
    labels: Sequence[int] | None
    annotated: Annotated | None = None


def _prepared(path: Path, preprocessing: Preprocessing, annotated: Annotated | None) -> tuple[Tensor, Any]:
    picture = read_image(path, preprocessing.scaled_side if annotated is None else None)
    try:
        target = None if annotated is None else annotated.target(path, picture, preprocessing)
        return preprocessing(picture), target
    except DataError as error:
        raise UnreadableError(str(error)) from error


def _room(count: int, preprocessing: Preprocessing) -> Tensor:
    try:
        return torch.empty(count, preprocessing.channels, *preprocessing.size)
    except RuntimeError as error:
        size = count * 4 * preprocessing.channels * math.prod(preprocessing.size)
        raise DataError(
            f"{count} pictures of {preprocessing.size[0]}x{preprocessing.size[1]} take {size / 1e9:.1f} GB, more than "
            "there is; take fewer samples or a smaller size"
        ) from error


def decode(
    folder: Folder, order: Sequence[int], wanted: int, preprocessing: Preprocessing | None, skipped: Skipped
) -> Dataset | Pictures | None:
    """Decode images in `order` until `wanted` are read; `None` where none can be. `skipped` gets what cannot.

    Of pictures at their own sizes (`fit="own"`) they are `Pictures`.
    """
    if preprocessing is None:
        raise DataError(
            f"{folder.root} holds images, and the model does not say how to prepare them; "
            "give a preprocessing with mean, std and size (--mean, --std, --size)"
        )
    before = len(skipped.files)
    found = _read(folder, order, wanted, preprocessing, skipped)
    output = None if preprocessing.fit == "own" else _room(wanted, preprocessing)
    pictures: list[Tensor] = []
    taken: list[int] = []
    targets: list[Any] = []
    for index, picture, target in found:
        if output is None:
            pictures.append(picture)
        else:
            output[len(taken)] = picture
        targets.append(target)
        taken.append(index)
    skipped.check()
    if not taken:
        return None
    told = None if folder.annotated is None else targets
    names = [_name(folder.paths[index], folder.root) for index in taken]
    origin = "" if folder.annotated is None else folder.annotated.origin
    if output is None:
        return Pictures(pictures, told, names, skipped.files[before:], origin)
    labels = None if folder.labels is None else torch.tensor([folder.labels[index] for index in taken])
    return Dataset((output[: len(taken)],), labels, names, skipped.files[before:], targets=told, origin=origin)


def _read(
    folder: Folder, order: Sequence[int], wanted: int, preprocessing: Preprocessing, skipped: Skipped
) -> Iterator[tuple[int, Tensor, Any]]:
    """Place, input and target of each picture that can be read, until these are `wanted`."""
    count, positions = 0, iter(order)
    paths = [folder.paths[index] for index in order]
    with closing(map_ordered(lambda path: _prepared(path, preprocessing, folder.annotated), paths)) as results:
        for path, result in results:
            index = next(positions)
            skipped.seen += 1
            if isinstance(result, UnreadableError):
                skipped.files.append(printable(f"{_name(path, folder.root)}: {result}"))
                continue
            yield index, *result
            count += 1
            if count == wanted:
                return


def _name(path: Path, root: Path) -> str:
    return printable((path.relative_to(root) if path.is_relative_to(root) else path).as_posix())
