"""Keep freed memory in the process while blocks are learned on the CPU.

Every step allocates and frees the same large activations. By default the C library returns each to the operating
system and fetches it again page by page, which can cost more time than the arithmetic (benchmarks/fake_quant.py
--memory). With glibc that is a setting; other C libraries and CUDA devices are left alone.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)
_NEVER = 2**31 - 1
_DEFAULTS = {_TRIM_THRESHOLD: 128 << 10, _TOP_PAD: 0, _MMAP_MAX: 65_536}


@contextmanager
def reuse_freed(device: torch.device) -> Iterator[None]:
    """Inside, freed host memory stays with the process; at the end it is given back. Changes no result."""
    library = ctypes.CDLL(None) if device.type == "cpu" and platform.libc_ver()[0] == "glibc" else None
    if library is None:
        yield
        return
    try:
        for option, value in {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: 64 << 20}.items():
            library.mallopt(option, value)
        yield
    finally:
        for option, value in _DEFAULTS.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
