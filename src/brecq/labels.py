"""Class indices: which of them count, and which are none of a network's."""

from __future__ import annotations

from torch import Tensor

IGNORED = -100
"""The label of what does not count, as PyTorch's losses have it (`ignore_index`)."""


def counted(labels: Tensor) -> Tensor:
    """Which of the `labels` count: bool, of their shape."""
    return labels != IGNORED


def no_class(labels: Tensor, classes: int) -> int | None:
    """The place in the flattened `labels` of the first that counts and is none of 0 to `classes` - 1; `None` if all
    are."""
    wrong = (((labels < 0) | (labels >= classes)) & counted(labels)).flatten().nonzero()
    return int(wrong[0]) if len(wrong) else None


def left_out(ignored: int, total: int, what: str) -> list[str]:
    """What to say of so many labels that do not count; nothing where all do."""
    return [f"{ignored} of {total} {what} are {IGNORED} and left out"] if ignored else []
