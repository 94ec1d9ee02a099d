"""Pictures at their own sizes, for networks that take a list of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from brecq.data.dataset import unreadable
from brecq.errors import DataError
from brecq.forward import even_slices


@dataclass(frozen=True)
class Pictures:
    """Pictures of any sizes, on the CPU: the one argument of a detector that resizes them itself.

    Attributes:
        pictures: float32 [C, H, W] each.
        targets: what is right of each, such as dictionaries of boxes; `None` without.
        names: one per picture (file names), or empty.
        skipped: what could not be read and why, `NAME: REASON`.
        origin: what of the data went where, in words.
    """

    pictures: Sequence[Tensor]
    targets: Sequence[Any] | None = None
    names: Sequence[str] = ()
    skipped: list[str] = field(default_factory=list)
    origin: str = ""

    def __post_init__(self) -> None:
        if not self.pictures:
            raise DataError("the data holds no pictures; give at least one")
        if self.targets is not None and len(self.targets) != len(self.pictures):
            raise DataError(f"there are {len(self.pictures)} pictures and {len(self.targets)} targets; give one each")

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[list[Tensor]]:
        """What a detector is called with: each picture alone."""
        return ([picture] for picture in self.pictures)

    @property
    def answers(self) -> Sequence[Any] | None:
        """What is right, as `Dataset.answers`."""
        return self.targets

    @property
    def labelled(self) -> bool:
        """Whether it says what is right."""
        return self.targets is not None

    @property
    def left_out(self) -> str:
        """What could not be read, in words; empty where all could."""
        return unreadable(self.skipped)

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """The heights and widths that there are."""
        return {(picture.shape[1], picture.shape[2]) for picture in self.pictures}

    def subset(self, rows: slice) -> Pictures:
        """Those pictures, without the list of skipped files."""
        targets = None if self.targets is None else self.targets[rows]
        return Pictures(self.pictures[rows], targets, self.names[rows], origin=self.origin)

    def calls(self, size: int) -> Iterator[list[Tensor]]:
        """What a detector is called with, lists of at most `size` pictures."""
        return (list(few.pictures) for few in self.batches(size))

    def batches(self, size: int) -> Iterator[Pictures]:
        """The pictures in order, in nearly equal batches of at most `size`."""
        for rows in even_slices(len(self), size):
            yield self.subset(rows)

    def digest(self) -> str:
        """SHA-256 over dtypes, shapes and bytes of the pictures: equal data, equal digest, whatever the names."""
        sha = hashlib.sha256()
        for picture in self.pictures:
            sha.update(f"{picture.dtype}{list(picture.shape)}".encode())
            sha.update(picture.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return sha.hexdigest()
