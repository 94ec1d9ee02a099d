"""Four-bit codes in bytes, as LiteRT and CMSIS-NN store them."""

from __future__ import annotations

import numpy as np


def pack_int4(codes: np.ndarray) -> bytes:
    """Two codes in -8..7 a byte, the first in the low bits."""
    flat = codes.reshape(-1).astype(np.uint8) & 15
    flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
    return bytes(flat[0::2] | flat[1::2] << 4)
