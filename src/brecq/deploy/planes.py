"""Codes of any bit-width as bytes that hold 8, 4, 2 or 1 codes each: what shifts and masks alone can unpack.

A width that is no power of two is split into planes: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1.
"""

from __future__ import annotations

import numpy as np


def plane_widths(bits: int) -> list[int]:
    """The widths of the planes that hold codes of `bits` bits, lowest first: 4 before 2 before 1."""
    return [width for width in (8, 4, 2, 1) if bits & width]


def pack_plane(codes: np.ndarray, width: int) -> np.ndarray:
    """Codes below 2^width, one-dimensional, as uint8 [ceil(n·width / 8)]; the first code is in the lowest bits."""
    per = 8 // width
    padded = np.zeros(-(-codes.size // per) * per, np.uint8)
    padded[: codes.size] = codes
    shifts = (np.arange(per) * width).astype(np.uint8)
    packed: np.ndarray = np.bitwise_or.reduce(padded.reshape(-1, per) << shifts, axis=1).astype(np.uint8)
    return packed
