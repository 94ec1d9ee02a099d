"""Files that are complete or not there: written under a temporary name, flushed, renamed. Full disks are one line."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from brecq.errors import BrecqError

if TYPE_CHECKING:
    from torch import Tensor

Chunk = bytes | memoryview

TEMPORARY = ".tmp."
"""What the names of files begin with that are not complete yet."""

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
         errno.EFBIG: "a file may not be that large here (ulimit -f)"}  # fmt: skip
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_PIECE = 1 << 20


@contextmanager
def replacing(path: Path, raises: type[BrecqError], needed: int | None = None) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there takes the place of `path` when the block ends well.

    Args:
        raises: what to raise where the file cannot be written. needed: its bytes where known, for the message.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        if needed is None and os.path.exists(temporary):
            needed = temporary.stat().st_size
        raise raises(explain(error, path, needed)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: Iterable[Chunk] | bytes, raises: type[BrecqError], *, parents: bool = False) -> None:
    """Write a whole file: room for it is reserved first, and its name appears when it is complete.

    Args:
        parents: create its folder.
    """
    chunks = [content] if isinstance(content, bytes) else list(content)
    size = sum(len(chunk) for chunk in chunks)
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise raises(explain(error, path, size)) from error
    with replacing(path, raises, size) as temporary, temporary.open("wb") as file:
        reserve(file.fileno(), size)
        for chunk in chunks:
            file.write(chunk)


def reserve(descriptor: int, size: int) -> None:
    """Give an empty file `size` bytes of the disk, so that no later write can run out of it; they read as zeros.

    Raises:
        OSError: the disk has no room for them.
    """
    if size == 0:
        return None
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
    for start in range(0, size, _PIECE):  # a file system that cannot reserve
        os.pwrite(descriptor, bytes(min(_PIECE, size - start)), start)
    return None


def unload(mapped: Tensor) -> None:
    """Give the pages of a mapped file back to the system; they are read again where they are needed. Linux alone."""
    if not sys.platform.startswith("linux"):
        return
    page = os.sysconf("SC_PAGE_SIZE")
    start = mapped.data_ptr() // page * page
    size = mapped.data_ptr() + mapped.nbytes - start
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def explain(error: OSError, path: Path, needed: int | None = None) -> str:
    """One line: what could not be written, why, and what to do."""
    if error.errno not in _FULL:
        return f"cannot write {path}: {error.strerror or error}; choose another place"
    folder = next(folder for folder in path.absolute().parents if os.path.exists(folder))
    sizes = f"{shutil.disk_usage(folder).free} bytes are free"
    if needed is not None:
        sizes = f"{needed} bytes are needed, {sizes}"
    return f"cannot write {path}: {_FULL[error.errno]}: {sizes}; make room, then continue or repeat the command"


def refuse_strangers(folder: Path, names: Iterable[str], raises: type[BrecqError]) -> None:
    """Raise if one of the files that are to be written is there and is not brecq's."""
    for file in (folder / name for name in names):
        if os.path.exists(file) and not is_ours(file):
            raise raises(f"{file} is not brecq's and is not replaced; move it away, or choose another folder")


def is_ours(file: Path) -> bool:
    """Whether brecq wrote the file: `"format": "brecq ..."` is among the first fields of all that it writes."""
    if not os.path.isfile(file):
        return False
    with file.open("rb") as stream:
        return b'"brecq' in stream.read(256)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk: a rename must not overtake the data it renames."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_PIECE):
            digest.update(chunk)
    return digest.hexdigest()
