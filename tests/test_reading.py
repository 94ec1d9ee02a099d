"""Files that people write: what is no text, no file, or nested too deeply is told in one line."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brecq.errors import DataError
from brecq.reading import read_json, read_rows, read_text, read_toml

READERS = (read_text, read_json, read_toml, read_rows)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "it is a folder; give a table"),
        (os.mkfifo, "it is a named pipe"),
        (bind, "it is a socket"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
        (lambda path: path.write_bytes(b"\xff\xfe\x80"), "is not text"),
        (lambda path: path.write_bytes(b"a\0b"), "zero bytes"),
    ],
)
def test_what_is_no_text(
    read: Callable[..., Any],
    make: Callable[[Path], Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = Path("t")
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        read(path, DataError, "table")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[]", "holds a list"),
        ("{", "is no table"),
        ("9" * 5000, "is no table"),
        ("", "is no table"),
    ],
)
def test_what_is_no_json(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(DataError, match=message):
        read_json(tmp_path / "t", DataError, "table")


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a", "a = 1\na = 2"])
def test_what_is_no_toml(text: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(DataError, match="not valid TOML"):
        read_toml(tmp_path / "t", DataError, "table")


def test_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes('\ufeff{"a": "é"}'.encode())
    assert read_json(tmp_path / "t", DataError, "table") == {"a": "é"}
    (tmp_path / "t").write_text('a = "é"')
    assert read_toml(tmp_path / "t", DataError, "table") == {"a": "é"}
    (tmp_path / "t").write_text('a,"b\nc"\n\n')
    assert read_rows(tmp_path / "t", DataError, "table") == [["a", "b\nc"], []]
