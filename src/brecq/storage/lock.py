"""One process at a time in a folder. The lock ends with its process, however that ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from brecq.errors import BrecqError
from brecq.storage.files import explain

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".brecq.lock"
_held: dict[Path, int] = {}  # by folder, the thread of this process that works there


@contextmanager
def locked(folder: Path, raises: type[BrecqError]) -> Iterator[None]:
    """Keep other processes and threads out of `folder`, which is created; inside, the same thread may lock it again.

    Raises:
        `raises`: somebody else works there (the message names the process), or the folder cannot be written.
    """
    folder = folder.resolve()
    if _held.get(folder) == threading.get_ident():
        yield
        return
    new = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(folder / LOCK)
    except BlockingIOError:
        raise raises(
            f"{folder} is in use by {_holder(folder / LOCK)}; wait for it, end it, or choose another folder"
        ) from None
    except OSError as error:
        raise raises(explain(error, folder)) from error
    _held[folder] = threading.get_ident()
    try:
        yield
    finally:
        del _held[folder]
        (folder / LOCK).unlink(missing_ok=True)
        os.close(descriptor)
        with suppress(OSError):  # it holds something, as it should
            for path in new:
                path.rmdir()


def _acquire(file: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # whoever held the lock may have removed the file between the two lines above
            if os.path.exists(file) and os.path.samestat(os.fstat(descriptor), file.stat()):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _holder(file: Path) -> str:
    try:
        return f"process {int(file.read_text())}"
    except (OSError, ValueError):
        return "another process"
