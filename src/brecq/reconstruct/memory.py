"""Memory while blocks are learned: kept in the process and used sparingly on the CPU, made room in on a CUDA device.

Every step allocates and frees the same large activations. By default the C library returns each to the operating
system and fetches it again page by page, which can cost more time than the arithmetic (benchmarks/fake_quant.py
--memory). With glibc that is a setting; other C libraries and CUDA devices are left alone.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from brecq.reconstruct.cache import ActivationCache

T = TypeVar("T")

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)
_NEVER = 2**31 - 1
_DEFAULTS = {_TRIM_THRESHOLD: 128 << 10, _TOP_PAD: 0, _MMAP_MAX: 65_536}


@contextmanager
def reuse_freed(device: torch.device) -> Iterator[None]:
    """Inside, freed host memory stays with the process; at the end it is given back. Changes no result."""
    library = _glibc(device)
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


def return_freed(device: torch.device) -> None:
    """Give freed host memory back to the system now: the next block needs tensors of other sizes, which do not fit."""
    library = _glibc(device)
    if library is not None:
        library.malloc_trim(0)


def _glibc(device: torch.device) -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if device.type == "cpu" and _is_glibc() else None


@cache
def _is_glibc() -> bool:
    """Asked once: the interpreter's file is read for it."""
    return platform.libc_ver()[0] == "glibc"


LARGEST_PART = 1 << 27
"""Bytes that the backward pass may need of a part of a batch, where batches are cut before memory runs out."""

_FEW = 2
"""Samples: exported programs are often specialized to two or more."""


def parts_of(batch: int, forward: Callable[[int], Any]) -> int:
    """Into how many parts to cut a batch on the CPU, where memory is shared and running out of it ends the process.

    Args:
        forward: runs on so many samples. What it keeps for the backward pass is taken to grow with their number.
    """
    if batch < 2 * _FEW:
        return 1
    try:
        growth = _kept(partial(forward, 2 * _FEW)) - _kept(partial(forward, _FEW))
    except torch.OutOfMemoryError:
        return 1  # whoever learns finds out, too, and cuts the batch
    fit = max(_FEW, LARGEST_PART * _FEW // max(1, growth))
    return -(-batch // min(batch, fit))


@torch.enable_grad()
def _kept(forward: Callable[[], Any]) -> int:
    """Bytes of the tensors that a forward pass keeps."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(sizes.values())


def with_room(
    cache: ActivationCache, work: Callable[..., T], *args: Any, smaller: Callable[[], bool] = lambda: False
) -> T:
    """`work(*args)`, and again whenever the device is out of memory: first with the caches on the host, then as long
    as `smaller` makes the work smaller.

    Raises:
        torch.OutOfMemoryError: that was all that could be done.
    """
    while True:
        try:
            return work(*args)
        except torch.OutOfMemoryError as error:
            reason = error.with_traceback(None)  # its frames hold on to memory
        if not cache.evict() and not smaller():
            raise reason
        if cache.device.type == "cuda":
            torch.cuda.empty_cache()
