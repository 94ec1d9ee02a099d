"""Labels of image files: from a CSV, or from the folder a file lies in."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from brecq.errors import DataError
from brecq.reading import read_rows

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))


def find_csv(root: Path) -> Path | None:
    """`labels.csv` in `root` or beside it."""
    return next((path for path in (root / "labels.csv", root.parent / "labels.csv") if path.is_file()), None)


def read_csv(path: Path) -> dict[str, int]:
    """File name to class index, from the columns `file` and `label`, or the first two where these are missing.

    Raises:
        DataError: the CSV is missing, empty, has fewer than two columns, or labels that are not whole numbers.
    """
    what = "CSV with columns file,label"
    rows = [row for row in read_rows(path, DataError, what) if any(cell.strip() for cell in row)]
    if not rows:
        raise DataError(f"{path} is empty; give a CSV with columns file,label")
    header = [cell.strip().lower() for cell in rows[0]]
    columns = (header.index("file"), header.index("label")) if {"file", "label"} <= set(header) else (0, 1)
    # without these names the first row is a header exactly when it holds no number
    has_header = columns != (0, 1) or len(header) < 2 or not _is_integer(rows[0][1])
    labels: dict[str, int] = {}
    for number, row in enumerate(rows[has_header:], 1 + has_header):
        if len(row) <= max(columns):
            raise DataError(f"row {number} of {path} is {','.join(row)!r}; give columns file,label")
        name, label = (row[column].strip() for column in columns)
        if not _is_integer(label):
            raise DataError(f"row {number} of {path}: label {label!r} of {name} is not a class index 0, 1, 2, ...")
        key = name.replace("\\", "/").removeprefix("./")
        if labels.setdefault(key, int(label)) != int(label):
            raise DataError(f"{path} gives {name} two labels, {labels[key]} and {label}; remove one of the rows")
    if not labels:
        raise DataError(f"{path} has a header and no rows; give one row per image: file,label")
    return labels


def from_csv(root: Path, paths: Sequence[Path], csv_path: Path, *, explicit: bool) -> list[int] | None:
    """Class index per image. A row's name may be relative to `root` or to the CSV, or the bare file name.

    A CSV that was named (`explicit`) must label every image. One that was merely found is ignored (`None`) where it
    names none of the images, and with a warning where it names only some or cannot be read.
    """
    try:
        table = read_csv(csv_path)
    except DataError as error:
        if explicit:
            raise
        warnings.warn(f"{error}; this file is ignored", stacklevel=2)
        return None
    stems: dict[str, int] = {}
    for name, label in table.items():
        stems.setdefault(os.path.splitext(name)[0], label)
    bases = (root, csv_path.parent)
    labels = [_lookup(path, bases, table, stems) for path in paths]
    missing = [path for path, label in zip(paths, labels, strict=True) if label is None]
    if not missing:
        return [label for label in labels if label is not None]
    examples = ", ".join(str(path.relative_to(root)) for path in missing[:3])
    if explicit:
        raise DataError(
            f"{csv_path} has no label for {len(missing)} of {len(paths)} images, such as {examples} "
            f"(its first row is for {next(iter(table))}); add rows for them, or remove the images"
        )
    if len(missing) < len(paths):
        warnings.warn(
            f"{csv_path} labels only {len(paths) - len(missing)} of {len(paths)} images (not {examples}); "
            "it is ignored",
            stacklevel=2,
        )
    return None


def _lookup(path: Path, bases: Sequence[Path], table: dict[str, int], stems: dict[str, int]) -> int | None:
    names = [path.relative_to(base).as_posix() for base in bases if path.is_relative_to(base)]
    for name in (*names, path.name):
        if name in table:
            return table[name]
    for name in (*names, path.name):
        stem = os.path.splitext(name)[0]
        if stem in stems:
            return stems[stem]
    return None


def from_folders(root: Path, paths: Sequence[Path]) -> list[int] | None:
    """Class index per image from its folder directly under `root`, counted in sorted order (as torchvision does).

    `None` where this cannot be meant: images directly in `root`, a single folder, or folders named after splits.
    """
    folders = [path.relative_to(root).parts[0] for path in paths if len(path.relative_to(root).parts) > 1]
    classes = sorted(set(folders))
    if len(folders) < len(paths) or len(classes) < 2 or {name.lower() for name in classes} <= SPLITS:
        return None
    if all(name.isdecimal() for name in classes) and classes != sorted(classes, key=int):
        warnings.warn(
            f"the class folders in {root} are numbers; as in torchvision's ImageFolder their labels follow the "
            f"sorted names ({', '.join(classes[:3])}, ...), not the numbers: if that is wrong, pad them with zeros or "
            "give a CSV",
            stacklevel=2,
        )
    index = {name: position for position, name in enumerate(classes)}
    return [index[name] for name in folders]


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,18}", text.strip()) is not None
