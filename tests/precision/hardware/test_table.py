"""Latency tables: look-up, files, what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brecq.errors import HardwareError
from brecq.precision.hardware.counts import BitOperations, ModelSize
from brecq.precision.hardware.table import COLUMNS, Entry, LatencyTable, signature
from brecq.precision.layers import Layer

CONV = Layer("c", "conv2d", "b", (8, 4, 3, 3), (4, 9, 9), (8, 5, 5), (2, 2), (1, 1), 1, 7200, "w", "a", {2: 10, 8: 40})
LINEAR = Layer("fc", "linear", "b", (10, 8), (8,), (10,), (), (), 1, 80, "w", "a")


@pytest.fixture
def table() -> LatencyTable:
    entries = [Entry(signature(CONV), w, a, t) for w, a, t in ((2, 8, 0.1), (8, 8, 0.4), (8, 16, 0.5), (32, 32, 2.0))]
    return LatencyTable("mine", (*entries, Entry(signature(LINEAR), 8, 8, 0.05)))


def test_a_signature() -> None:
    assert str(signature(CONV)) == (
        "conv2d (input 4x9x9, output 8x5x5, kernel 3x3, stride 2x2, dilation 1x1, groups 1)"
    )
    assert str(signature(LINEAR)) == "linear (input 8, output 10, groups 1)"


@pytest.mark.parametrize(
    ("bits", "time"), [((2, 8), 0.1), ((2, 2), 0.1), ((3, 8), 0.4), ((4, 9), 0.5), ((4, 32), 2.0), ((32, 8), 2.0)]
)
def test_the_narrowest_kernel_that_holds_a_layer(table: LatencyTable, bits: tuple[int, int], time: float) -> None:
    assert table.cost(CONV, *bits) == time


def test_what_is_missing_is_named(table: LatencyTable) -> None:
    with pytest.raises(
        HardwareError, match=r"'fc': linear \(input 8, .* 4-bit .* 32-bit inputs; it has w8 a8 of this"
    ):
        table.cost(LINEAR, 4, 32)
    with pytest.raises(HardwareError, match="nothing of this shape: add a row, or measure it"):
        LatencyTable("empty", table.entries[-1:]).cost(CONV, 8, 8)


@pytest.mark.parametrize("name", ["latency.json", "latency.csv"])
def test_files(table: LatencyTable, tmp_path: Path, name: str) -> None:
    loaded = LatencyTable.load(table.save(tmp_path / name))
    assert loaded.entries == table.entries
    assert loaded.name == ("mine" if name.endswith("json") else "latency")


HEADER = ",".join(COLUMNS)
ROW = "linear,8,10,,,,1,8,8,0.5"


def test_a_table_written_by_hand(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{HEADER}\n{ROW}\n")
    assert LatencyTable.load(tmp_path / "t.csv").cost(LINEAR, 4, 8) == 0.5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", HEADER, "has no rows"),
        ("t.csv", f"{HEADER}\n{ROW}\n{ROW.replace('0.5', '0.6')}", "two times for linear"),
        ("t.csv", f"{HEADER}\n{ROW.replace('0.5', '-1')}", "takes -1.0 ms; give a positive number"),
        ("t.csv", f"{HEADER}\n{ROW.replace('0.5', 'fast')}", "row 1: .*'fast'"),
        ("t.csv", f"{HEADER}\n{ROW.replace('8,8,0.5', '0,8,0.5')}", "w_bits of linear .* is 0"),
        ("t.csv", "op,input\nlinear,8", "row 1 lacks 'output'"),
        ("t.json", "{", "no latency table"),
        ("t.json", "[]", "no latency table"),
        ("t.json", json.dumps({"version": 3, "entries": []}), "version 3"),
        ("t.json", None, "cannot read"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(HardwareError, match=message):
        LatencyTable.load(tmp_path / name)


def test_counted_costs() -> None:
    assert BitOperations().cost(CONV, 4, 8) == 7200 * 32
    size = ModelSize(100.0)
    assert (size.overhead, size.cost(CONV, 2, 8), size.cost(CONV, 8, 8), size.cost(LINEAR, 8, 8)) == (100, 10, 40, 0)
