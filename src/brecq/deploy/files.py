"""Files that are complete or not there: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brecq.checkpoint.directory import sync
from brecq.errors import ExportError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there takes the place of `path` when the block ends well.

    Raises:
        ExportError: the file cannot be written.
    """
    temporary = path.with_name(f".tmp.{path.name}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}; choose another path") from error
    finally:
        temporary.unlink(missing_ok=True)
