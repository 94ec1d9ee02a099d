"""The report as a reader sees it: every layer is in it, nothing outside of it is needed."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch

import brecq
from brecq.errors import CheckpointError
from brecq.page.boxes import compare
from brecq.page.charts import size_against
from brecq.page.compare import compare_page, shortest_names
from brecq.page.exported import exported
from brecq.page.facts import gather
from brecq.page.record import RECORD, Changed, Detected, Exported, Record, Row
from brecq.page.render import page, write_page, write_text


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
        assert len(layer.codes) == 2**layer.bits - (" symmetric" in layer.weights)
        if " symmetric" in layer.weights:
            assert layer.code_low + len(layer.codes) - 1 == -layer.code_low
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
    text = page(result, Record())
    file = write_text(tmp_path / "report.html", text)
    assert write_text(file, text) == file
    file.write_text("<html>mine</html>")
    with pytest.raises(CheckpointError, match=r"report.html is not brecq's"):
        write_text(file, text)
    assert file.read_text() == "<html>mine</html>"


def test_records_come_back_and_damaged_ones_are_refused(record: Record, tmp_path: Path) -> None:
    assert Record.load(tmp_path) == Record()
    record = dataclasses.replace(record, exported=[Exported("a.onnx", "a runtime", 3, {"a": 2.0}, None)])
    record.save(tmp_path)
    assert Record.load(tmp_path) == record
    for damage in ("{", "[]", '{"rows": 3}', '{"rows": [{"name": 1}], "changed": []}'):
        (tmp_path / RECORD).write_text(damage)
        with pytest.raises(CheckpointError, match=r"record.json is damaged"):
            Record.load(tmp_path)


def test_results_side_by_side(result: brecq.QuantResult, record: Record) -> None:
    other = Record("", [Row("reconstructed", {"top-1 %": 75.0})])
    text = compare_page([("one", result, record), ("two", result, other)])
    for each in ("71.50", "75.00", "80.00", "Size against top-1 %"):  # 80: the float network's
        assert each in text


def test_what_is_best_is_on_the_front() -> None:
    points = [[(1, 30.0, "small"), (2, 20.0, "middle"), (3, 25.0, "large")]]
    more, fewer = size_against("top-1 %", points), size_against("perplexity", points, 10.0, fewer=True)
    assert (">float<" in more, ">float<" in fewer) == (False, True)
    lines = [
        re.findall(r'<path d="M [^"]*"[^>]*stroke: var\(--faint\); stroke-width: 1\.5', each) for each in (more, fewer)
    ]
    assert [sum(line.count("L ") for line in each) for each in lines] == [0, 1]  # `small` alone; `small` to `middle`


def test_an_exported_file_is_beside_its_result(result: brecq.QuantResult) -> None:
    names = [layer.name for layer in gather(result).layers]
    tensors = [(f"{names[0]}.conv2d", 100.0, 1.0), (f"{names[1]}.conv2d", 1.0, 0.0), ("a.add", 1.0, 1.0),
               ("output 0", 30.0, 3.0), ("output 1", 10.0, 1.0)]  # fmt: skip
    found = exported("net.onnx", "ONNX Runtime", 32, tensors, names)
    assert found.layers == {names[0]: pytest.approx(20.0)}
    assert found.outputs == pytest.approx(10.0)
    text = page(result, Record(exported=[found]))
    assert "The exported file net.onnx in ONNX Runtime, on 32 samples" in text
    assert ">exported file<" in text
    assert '["the same in the exported file","20.0 dB"]' in text


def test_folders_of_the_same_name_are_told_apart() -> None:
    assert shortest_names([Path("/a/out"), Path("/b/out")]) == ["a/out", "b/out"]
    assert shortest_names([Path("/a/one"), Path("/b/two")]) == ["one", "two"]


def test_boxes_find_their_partners() -> None:
    floating = [[0, 0, 10, 10, 0.9, "cat"], [50, 50, 90, 90, 0.8, "dog"], [20, 20, 30, 30, 0.5, "cat"]]
    quantized = [[1, 0, 11, 10, 0.7, "cat"], [50, 50, 90, 90, 0.6, "cat"]]
    boxes = compare(Detected("", 100, 100, floating, quantized))  # type: ignore[arg-type]
    assert (boxes.both, boxes.floating, boxes.quantized) == (1, 2, 1)
    assert [(each.kind, each.alone, each.text) for each in boxes.drawn] == [
        ("float", False, ""), ("float", True, "dog 0.80"), ("float", True, "cat 0.50"),
        ("quantized", False, "cat 0.70"), ("quantized", True, "cat 0.60"),
    ]  # fmt: skip


def test_text_stands_out_from_what_it_is_on() -> None:
    """WCAG's contrast of 4.5 and more, light and dark."""
    style = (Path(brecq.__file__).parent / "page" / "templates" / "style.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", part))
                   for part in style.split("prefers-color-scheme: dark"))  # fmt: skip
    for colors in (light, dark):
        for ink, on in [("ink", "paper"), ("ink", "panel"), ("quiet", "paper"), ("quiet", "panel"), ("link", "paper"),
                        *(("ink", f"l{level}") for level in range(5))]:  # fmt: skip
            assert contrast(colors[ink], colors[on]) >= 4.5, (ink, on)


def contrast(first: str, second: str) -> float:
    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_headings_go_down_one_level_at_a_time(result: brecq.QuantResult, record: Record) -> None:
    levels = [int(level) for level in re.findall(r"<h(\d)", page(result, record))]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
