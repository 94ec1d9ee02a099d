"""Whose an exported file is: brecq writes into most kinds which result they are of (`QuantResult.digest`)."""

from __future__ import annotations

import mmap
from pathlib import Path

from brecq.deploy.formats import FORMATS
from brecq.result import QuantResult

NAMELESS = (".pte",)
"""Kinds of files that have no place for it."""


def exported_files(result: QuantResult, folder: Path) -> tuple[list[str], list[str]]:
    """The names of the files for other runtimes in `folder` that are of this result, and of those that are not, or do
    not tell. A file that lies beside another one of its name is whose that one is."""
    beside = {suffix for each in FORMATS.values() for suffix in each.files}
    leading = {each.suffix for each in FORMATS.values() if each.suffix}
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in leading | beside)
    digest = result.digest()
    mine = {file for file in files if file.suffix in leading and (file.suffix in NAMELESS or _names(file, digest))}
    stems = {file.stem for file in mine}
    mine |= {file for file in files if file.suffix in beside and file.stem in stems}
    return [file.name for file in files if file in mine], [file.name for file in files if file not in mine]


def _names(file: Path, digest: str) -> bool:
    """Whether the digest stands in the file: every format that keeps it keeps it as plain text."""
    if not file.stat().st_size:
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(digest.encode()) >= 0
