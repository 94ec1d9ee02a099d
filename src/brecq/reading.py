"""Text files that people write: tables, labels, hardware models. What cannot be read of them is told in one line."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brecq.errors import BrecqError, first_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_BYTES = 2**30
_LONGEST = 300


def check_regular(path: Path, raises: type[BrecqError], what: str = "file") -> None:
    """Raise unless `path` is a file: named pipes wait for ever, devices never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise raises(f"cannot read {str(path)!r}: {reason_of(error)}; give a {what}") from None
    if not stat.S_ISREG(mode):
        raise raises(f"cannot read {str(path)!r}: it is {_kind(mode)}; give a {what}")


def read_text(path: Path, raises: type[BrecqError], what: str) -> str:
    """The text of a UTF-8 file, without a byte order mark. `what` the file should be is named in errors."""
    check_regular(path, raises, what)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise raises(f"{str(path)!r} has {path.stat().st_size} bytes, more than any {what}; give another file")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise raises(f"{str(path)!r} is not text ({error}); give a {what}") from error
    except OSError as error:
        raise raises(f"cannot read {str(path)!r}: {reason_of(error)}; give a {what}") from error
    if "\0" in text:
        raise raises(f"{str(path)!r} is not text (it holds zero bytes); give a {what}")
    return text


def read_json(path: Path, raises: type[BrecqError], what: str) -> Mapping[str, Any]:
    """The object in a JSON file."""
    text = read_text(path, raises, what)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise raises(f"{str(path)!r} is no {what}: {_first_line(error)}") from error
    if not isinstance(values, dict):
        raise raises(f"{str(path)!r} is no {what}: it holds a {type(values).__name__}, not an object")
    return values


def read_toml(path: Path, raises: type[BrecqError], what: str) -> Mapping[str, Any]:
    """The table in a TOML file."""
    text = read_text(path, raises, what)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise raises(f"{str(path)!r} is not valid TOML: {_first_line(error)}") from error


def read_rows(path: Path, raises: type[BrecqError], what: str) -> list[list[str]]:
    """The rows of a CSV file."""
    text = read_text(path, raises, what)
    try:
        return list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise raises(f"cannot read {str(path)!r}: {error}; give a {what}") from error


def reason_of(error: Exception) -> str:
    """Why a file could not be read, in a few words: some libraries repeat what the file holds."""
    reason = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}…"


def _first_line(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device", stat.S_ISBLK: "a device",
    }  # fmt: skip
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "no regular file")
