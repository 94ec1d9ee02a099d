"""Tables of the documentation say what was measured: `benchmarks/tables.py` would write them as they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of the source distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))
tables = pytest.importorskip("tables")
import measured  # noqa: E402


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_a_page_says_what_was_measured(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run python benchmarks/tables.py"
    assert text.count("<!-- table:") == len(tables.MARKED.findall(text)), "a marker without its end"


def test_every_table_is_on_a_page_and_has_numbers() -> None:
    named = [
        name for page in tables.pages() for _, name, *_ in tables.MARKED.findall(page.read_text(encoding="utf-8"))
    ]
    assert sorted(named) == sorted(tables.TABLES)
    for name, table in tables.TABLES.items():
        lines = table()
        assert len({len(line) for line in lines}) == 1, name
        assert any(any(line[1:]) for line in lines[1:]), name


def test_the_newest_cell_counts_and_its_seeds_are_averaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def record(top1: float, seed: int, **recipe: int) -> str:
        config = {"method": "reconstruct", "placement": "output", "recipe": recipe, "seed": seed}
        key = {"network": "n", "config": config}
        return json.dumps({"network": "n", "row": "r", "column": "W2A2", "values": {"top1": top1}, "key": key})

    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    measured.records.cache_clear()
    lines = [record(10, 0), record(20, 1), record(30, 0, correction=0), record(70, 0, correction=0)]
    (tmp_path / "old.jsonl").write_text("\n".join(lines[:2]))
    (tmp_path / "new.jsonl").write_text("\n".join([*lines, record(50, 1, correction=0)]))
    assert measured.cell("old", "n", "W2A2", measured.Show("r")) == "15.00 ± 7.07 †"
    assert measured.cell("new", "n", "W2A2", measured.Show("r")) == "60.00 ± 14.14"
    assert measured.cell("new", "n", "W4A4", measured.Show("r")) == ""
    assert measured.cell("new", "n", "W2A2", measured.Show("r", where={"placement": "input"})) == ""
    measured.records.cache_clear()
