"""Latency look-up tables: milliseconds by operator, shape and bits (docs/mixed_precision.md has the format)."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from brecq.config import FLOAT
from brecq.errors import HardwareError
from brecq.precision.budget import Cost
from brecq.precision.layers import Layer
from brecq.reading import read_json, read_rows
from brecq.storage.files import write as write_file
from brecq.text import shown

VERSION = 1
COLUMNS = (
    "op", "input", "output", "kernel", "stride", "dilation", "groups", "w_bits", "a_bits", "milliseconds",
)  # fmt: skip


class Signature(NamedTuple):
    """What makes two layers take the same time, as text: `conv2d`, `16x32x32`, `16x32x32`, `3x3`, `1x1`, ..."""

    op: str
    input: str
    output: str
    kernel: str
    stride: str
    dilation: str
    groups: str

    def __str__(self) -> str:
        facts = [f"{name} {value}" for name, value in self._asdict().items() if value and name != "op"]
        return f"{self.op} ({', '.join(facts)})"


def signature(layer: Layer) -> Signature:
    """The signature of a layer; of linear ones kernel, stride and dilation are empty."""

    def text(sizes: Iterable[int]) -> str:
        return "x".join(map(str, sizes))

    return Signature(
        layer.kind, text(layer.input_shape), text(layer.output_shape), text(layer.kernel), text(layer.stride),
        text(layer.dilation), str(layer.groups),
    )  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One measurement: milliseconds of a layer whose kernel takes such weights and inputs, for such shapes."""

    signature: Signature
    w_bits: int
    a_bits: int
    milliseconds: float

    def __post_init__(self) -> None:
        for name in ("w_bits", "a_bits"):
            bits = getattr(self, name)
            if isinstance(bits, bool) or bits not in (*range(1, 17), FLOAT):
                raise HardwareError(f"{name} of {self.signature} is {bits!r}; give 1 to 16, or {FLOAT} for float")
        if not (self.milliseconds > 0 and math.isfinite(self.milliseconds)):
            raise HardwareError(f"{self.signature} takes {self.milliseconds!r} ms; give a positive number")


@dataclass(frozen=True)
class LatencyTable:
    """Latency of layers, looked up.

    A layer runs on the narrowest kernel that holds it: of the entries of its signature with at least its bits, the
    one with the fewest weight bits, then the fewest input bits. A table of 8-bit kernels so serves 2 to 8 bits.
    """

    name: str
    entries: tuple[Entry, ...]
    overhead: float = 0.0
    kind: Cost = "latency"
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def cost(self, layer: Layer, w_bits: int, a_bits: int) -> float:
        """Milliseconds per sample.

        Raises:
            HardwareError: no entry fits; the message names the layer and the row to add.
        """
        wanted = signature(layer)
        same = [entry for entry in self.entries if entry.signature == wanted]
        fitting = [entry for entry in same if entry.w_bits >= w_bits and entry.a_bits >= a_bits]
        if not fitting:
            have = ", ".join(f"w{entry.w_bits} a{entry.a_bits}" for entry in same)
            known = f"it has {have} of this shape only" if same else "it has nothing of this shape"
            raise HardwareError(
                f"the latency table {self.name!r} says nothing about the layer {layer.name!r}: {wanted} "
                f"with {w_bits}-bit weights and {a_bits}-bit inputs; {known}: add a row, or measure it (brecq profile)"
            )
        return layer.runs * min(fitting, key=lambda entry: (entry.w_bits, entry.a_bits)).milliseconds

    def save(self, file: Path | str) -> Path:
        """Write `.json` or `.csv`, by the file's ending (CSV keeps the entries alone)."""
        file = Path(file)
        rows = [_row(entry) for entry in self.entries]
        if file.suffix == ".csv":
            stream = io.StringIO(newline="")
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
            text = stream.getvalue()
        else:
            values = {
                "version": VERSION, "name": self.name, "overhead": self.overhead,
                "metadata": dict(self.metadata), "entries": rows,
            }  # fmt: skip
            text = json.dumps(values, indent=1) + "\n"
        write_file(file, text.encode(), HardwareError, parents=True)
        return file

    @classmethod
    def load(cls, file: Path | str) -> LatencyTable:
        """Read `.json` or `.csv`.

        Raises:
            HardwareError: the file is missing or malformed, or two rows contradict each other.
        """
        file = Path(file)
        values: Mapping[str, Any] = {}
        if file.suffix == ".csv":
            header, *lines = read_rows(file, HardwareError, "latency table") or [[]]
            rows: Any = [dict(zip(header, line, strict=False)) for line in lines if line]
        else:
            values = read_json(file, HardwareError, "latency table")
            rows = values.get("entries")
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise HardwareError(f"{file} is no latency table; it needs a list named entries, of objects")
            if values.get("version", VERSION) != VERSION:
                raise HardwareError(f"{file} has version {values['version']!r}, this brecq reads {VERSION}")
        name, overhead, metadata = (values.get(key) for key in ("name", "overhead", "metadata"))
        if not isinstance(name, str | None) or not isinstance(metadata, dict | None):
            raise HardwareError(f"{file}: name is a text and metadata an object, where they are given")
        entries = tuple(_entry(row, f"{file}, row {number}") for number, row in enumerate(rows, 1))
        if not entries:
            raise HardwareError(f"{file} has no rows; it needs the columns {', '.join(COLUMNS)}")
        seen: dict[tuple[Any, ...], float] = {}
        for entry in entries:
            key = (entry.signature, entry.w_bits, entry.a_bits)
            if seen.setdefault(key, entry.milliseconds) != entry.milliseconds:
                which = f"{entry.signature} w{entry.w_bits} a{entry.a_bits}"
                raise HardwareError(f"{file} has two times for {which}; keep one")
        return cls(file.stem if name is None else name, entries, _overhead(overhead, file), metadata=metadata or {})


def _overhead(value: Any, file: Path) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise HardwareError(f"{file}: overhead is {shown(value)}; give milliseconds, 0 or more")
    return float(value)


def _row(entry: Entry) -> dict[str, Any]:
    return {
        **entry.signature._asdict(), "w_bits": entry.w_bits, "a_bits": entry.a_bits,
        "milliseconds": entry.milliseconds,
    }  # fmt: skip


def _entry(row: Mapping[str, Any], where: str) -> Entry:
    missing = [column for column in COLUMNS if row.get(column) is None]
    if missing:
        raise HardwareError(f"{where} lacks {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    try:
        known = Signature(*(str(row[name]).strip() for name in Signature._fields))
        return Entry(known, int(row["w_bits"]), int(row["a_bits"]), float(row["milliseconds"]))
    except HardwareError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise HardwareError(f"{where}: {error}; bits are whole numbers, milliseconds a number") from error
