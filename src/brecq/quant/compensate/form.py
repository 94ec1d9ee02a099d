"""In which form the inputs of a layer are kept for the closed form: as second moments, or as the patches themselves.

    second moments    16·K² bytes kept, time K²·(K + R)       whatever the number of patches
    patches           8·N·K bytes kept, time K·N·(N + R)      of R rows with K inputs, of N patches

The memory planner asks here as well.
"""

from __future__ import annotations

from brecq.quant.compensate.search import FEW
from brecq.quant.compensate.thin import widest

SHARE = 0.5
"""Patches for each input of a row up to which they are what is kept: they take less memory and less time."""

WIDEST = 12_288
"""Most inputs of which there are second moments, which take 8.5 GB then."""

MOST = int(SHARE * WIDEST)
"""Patches that are kept, at most: a wider layer that sees more is content with so many, spread over all samples."""

ELEMENTS = 1 << 22
"""Numbers of the rows that are worked on at a time, in what they are as large as: 34 MB in float64."""

_SQUARES = 7
"""Tensors of the size of a layer's second moments, float64, that are held at once."""

_ROWS = 12
"""Tensors of the size of the rows that are worked on, float64, that are held beside them."""

_PATCHES = 6
"""Tensors of the size of all patches, float32, that are held at once."""

_BLOCKS = 8
"""Tensors of the size of products of patches with each other and with rows, float64, beside them."""

_RESULT = 10
"""Bytes of each weight of what is found: the start of learning, codes, and values for the bias."""


def keeps_patches(size: int, count: int) -> bool:
    """Whether patches are kept, of a layer with rows of `size` inputs that see `count` patches in all, 0 where nobody
    knows."""
    return size > FEW and (size > WIDEST or 0 < count <= SHARE * size)


def rows_at_once(width: int, rows: int, groups: int) -> int:
    """Of `rows` in each of `groups`, how many to work on at a time, each in so many numbers as `width`."""
    return min(rows, max(1, ELEMENTS // (width * groups)))


def bytes_of(groups: int, rows: int, size: int, count: int, *, apart: bool) -> int:
    """What the closed form of a layer holds at once, at most.

    Args:
        groups: G. rows: R. size: K. count: patches that it sees, at most.
        apart: each row has a step of its own, so that not all of them are worked on at a time.
    """
    weights = _RESULT * groups * rows * size
    if not keeps_patches(size, count):
        part = rows_at_once(size, rows, groups) if apart else rows
        return 8 * groups * (_SQUARES * size * size + _ROWS * part * size) + weights
    kept = min(count, MOST)
    width = widest(kept)
    part = rows_at_once(width, rows, groups) if apart else rows
    return groups * (4 * _PATCHES * kept * size + 8 * _BLOCKS * width * (width + part)) + weights
