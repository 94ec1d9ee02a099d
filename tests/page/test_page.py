"""The report as a reader sees it: every layer is in it, nothing outside of it is needed."""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import brecq
from brecq.errors import CheckpointError
from brecq.page.compare import compare_page, shortest_names
from brecq.page.facts import gather
from brecq.page.record import RECORD, Changed, Record, Row
from brecq.page.render import page, write_page


@pytest.fixture(scope="module")
def result(networks: ModuleType) -> brecq.QuantResult:
    torch.manual_seed(0)
    model = networks.build(networks.MobileNet)
    inputs = networks.inputs(model)
    data = torch.randn(16, *inputs[0].shape[1:])
    return brecq.quantize(model, data, brecq.QuantConfig(weights=4, activations=4, method="rtn"))


@pytest.fixture(scope="module")
def record() -> Record:
    rows = [Row("float", {"top-1 %": 80.0}, 1000, None), Row("rounding to nearest", {"top-1 %": 71.5}, 200, 3.0)]
    return Record("brecq quantize 'a <b>.py:f'", rows, 64, [], [Changed("AAAA", 3, 3, 4)], 64)


def test_every_layer_and_number_is_on_the_page(result: brecq.QuantResult, record: Record) -> None:
    text = page(result, record)
    facts = gather(result)
    assert len(facts.layers) == sum(bool(entry.weights) for entry in result.report.scope)
    for layer in facts.layers:
        assert layer.name in text
    assert "71.50" in text
    assert record.command in html.unescape(re.sub("</?span>", "", text))
    assert "a <b>.py" not in text
    shown = json.loads(re.search(r'id="layers">(.*?)</script>', text).group(1).replace("\\u003c", "<"))  # type: ignore[union-attr]
    assert [layer["name"] for layer in shown] == [layer.name for layer in facts.layers]


def test_codes_are_counted_on_their_grid(result: brecq.QuantResult) -> None:
    for layer in gather(result).layers:
        assert len(layer.codes) == 2**layer.bits
        assert sum(layer.codes) == layer.parameters


def test_noise_of_each_layer_is_that_of_its_output(networks: ModuleType) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 5)
    x = torch.randn(12, 6)
    result = brecq.quantize(layer, x, brecq.QuantConfig(weights=3, activations=32, first_last=None, method="rtn"))
    (noise,) = result.report.tensors
    expected, found = layer(x).double(), result.model(x).double()
    assert noise.signal == pytest.approx(expected.square().sum().item(), rel=1e-5)
    assert noise.noise == pytest.approx((expected - found).square().sum().item(), rel=1e-4)
    assert noise.sqnr == pytest.approx(10 * math.log10(noise.signal / noise.noise))
    assert sum(noise.counts) == 60
    assert noise.grid is None
    assert noise.low == pytest.approx(layer(x[:4]).min().item(), rel=1e-6)  # of the first batch


def test_the_page_needs_nothing_outside_of_it(result: brecq.QuantResult, record: Record, tmp_path: Path) -> None:
    text = write_page(result, tmp_path / "report.html", record).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert not re.findall(r"url\((?!#)", text)
    assert len(text) < 2_000_000


def test_a_page_that_cannot_be_written_names_the_file(result: brecq.QuantResult, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        write_page(result, tmp_path / "nowhere" / "report.html")


def test_only_pages_of_brecq_are_replaced(result: brecq.QuantResult, tmp_path: Path) -> None:
    page = write_page(result, tmp_path / "report.html")
    assert write_page(result, page) == page
    page.write_text("<html>mine</html>")
    with pytest.raises(CheckpointError, match=r"report.html is not brecq's"):
        write_page(result, page)
    assert page.read_text() == "<html>mine</html>"


def test_records_come_back_and_damaged_ones_are_refused(record: Record, tmp_path: Path) -> None:
    assert Record.load(tmp_path) == Record()
    record.save(tmp_path)
    assert Record.load(tmp_path) == record
    for damage in ("{", "[]", '{"rows": 3}', '{"rows": [{"name": 1}], "changed": []}'):
        (tmp_path / RECORD).write_text(damage)
        with pytest.raises(CheckpointError, match=r"record.json is damaged"):
            Record.load(tmp_path)


def test_results_side_by_side(result: brecq.QuantResult, record: Record) -> None:
    other = Record("", [Row("reconstructed", {"top-1 %": 75.0})])
    text = compare_page([("one", result, record), ("two", result, other)])
    assert "71.50" in text
    assert "75.00" in text
    assert "Size against top-1 %" in text


def test_folders_of_the_same_name_are_told_apart() -> None:
    assert shortest_names([Path("/a/out"), Path("/b/out")]) == ["a/out", "b/out"]
    assert shortest_names([Path("/a/one"), Path("/b/two")]) == ["one", "two"]
