"""What titles, tags and counts say is what the layers have."""

from __future__ import annotations

import dataclasses
import html
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq.page import charts, words
from brecq.page.card import card
from brecq.page.compare import compare_page
from brecq.page.facts import gather, left_in_float
from brecq.page.record import Record, Row
from brecq.page.render import page
from brecq.report import BlockReport, OutputNoise


class Mixed(nn.Module):
    """Layers that brecq quantizes between a look-up, a recurrent layer and a bilinear one."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(10, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.gru, self.pairs, self.last = nn.GRU(6, 4, batch_first=True), nn.Bilinear(4, 4, 5), nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.gru(self.second(self.first(self.table(tokens)).relu()))
        return self.last(self.pairs(x.mean(1), x.mean(1)))


def quantized(model: nn.Module, data: Any, **settings: Any) -> brecq.QuantResult:
    return brecq.quantize(model.eval(), data, brecq.QuantConfig(method="rtn", **settings))


@pytest.fixture(scope="module")
def mixed() -> brecq.QuantResult:
    torch.manual_seed(0)
    return quantized(Mixed(), torch.randint(0, 10, (16, 7)), weights=4, activations=8)


def chain(count: int, first: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(first, 6), nn.ReLU(), *(nn.Linear(6, 6) for _ in range(count - 1)))


@pytest.mark.parametrize(
    ("count", "settings", "bits", "tags", "weights"),
    [
        (2, {"weights": 2, "activations": 4}, "W8A8", ["8-bit"], "Weights of 8 bits; activations of 8 bits;"),
        (4, {"weights": 2, "activations": 8}, "W2A8 in 2 of 4 layers", ["2-bit", "8-bit"],
         "Weights of 2 bits in 2 layers, 8 bits in 2; activations of 8 bits;"),
        (3, {"weights": 4, "activations": 8, "first_last": None}, "W4A8", ["4-bit"],
         "Weights of 4 bits; activations of 8 bits;"),
        (3, {"weights": 3, "activations": 32, "first_last": None}, "W3A32", ["3-bit"],
         "Weights of 3 bits; activations of float;"),
        (4, {"weights": 4, "activations": 8, "rules": (brecq.LayerRule("2", weights=32),)}, "W4A8 in 1 of 4 layers",
         ["4-bit", "8-bit"], "Weights of 4 bits in 1 layer, 8 bits in 2, float in 1;"),
    ],
)  # fmt: skip
def test_bits_are_those_that_layers_have(
    count: int, settings: dict[str, Any], bits: str, tags: list[str], weights: str
) -> None:
    result = quantized(chain(count), torch.randn(16, 6), **settings)
    facts = gather(result)
    assert words.bits(facts) == bits
    assert words.title(facts) == f"A network at {bits}"
    assert words.tags(facts) == tags
    assert words.summary(facts).startswith(weights)
    text = card(result, Record(), "me/net")
    assert f"# A network at {bits}\n" in text
    assert f"tags: {['brecq', 'quantized', *tags]}".replace("'", '"') in text
    assert html.escape(bits) in compare_page([("a", result, Record()), ("b", result, Record())])


def test_bits_of_a_search_are_a_range() -> None:
    result = quantized(chain(4), torch.randn(16, 6), weights=4, activations=8, first_last=None,
                       rules=(brecq.LayerRule("2", weights=3),))  # fmt: skip
    result.report.allocation = {}
    assert words.bits(gather(result)) == "W3-4A8"


def test_a_title_is_no_markup() -> None:
    result = quantized(chain(2), torch.randn(16, 6))
    result.metadata["source"] = {"spec": "a/b.py:<b>&x"}
    assert "# b.py:&lt;b&gt;&amp;x at W8A8\n" in card(result, Record(), "me/net")
    result.metadata = {"part": "head", "part_of": "a/b.py:net"}
    assert words.network(result) == "head of b.py:net"


def test_what_holds_parameters_is_counted_with_its_bytes(mixed: brecq.QuantResult) -> None:
    facts = gather(mixed)
    held = {layer.name: (layer.kind, layer.weights, layer.parameters, layer.bytes) for layer in facts.layers}
    assert held["table"] == ("embedding", "float", 60, 240)
    gru = 3 * (6 * 4 + 4 * 4 + 4 + 4)
    assert held["gru"] == ("gru", "float", gru, 4 * gru)
    (pairs,) = (name for name in held if "pairs" in name)
    assert held[pairs][1:] == ("float", 85, 340)
    linear = 2 * (36 + 6) + 15 + 3
    whole = 60 + gru + 85 + linear
    assert facts.share == pytest.approx(100 * linear / whole)
    floats = {kind: size for kind, _, _, size in left_in_float(mixed.report.scope)}
    assert (floats["gru"], floats["embedding"]) == (4 * gru, 240)
    share = f"{100 * linear / whole:.1f} %"
    text = page(mixed, Record())
    assert f'{share}</dd><dd class="small">of the parameters: 3 of 6 operators' in text
    assert f"- 1 × gru, {4 * gru} B: recurrent" in card(mixed, Record(), "me/net")
    assert f"{share} of the parameters have quantized weights: 3 of 6 operators" in card(mixed, Record(), "me/net")


def test_small_and_infinite_metrics_are_shown_everywhere(mixed: brecq.QuantResult, tmp_path: Any) -> None:
    rows = [Row("float", {"RMSE": 0.00045721}), Row("quantized", {"RMSE": 0.00051, "SQNR dB": float("inf")})]
    record = Record("", rows, 8)
    record.save(tmp_path)
    assert Record.load(tmp_path) == record
    others = [("a", mixed, record), ("b", mixed, record)]
    for text in (page(mixed, record), card(mixed, record, "me/net"), compare_page(others)):
        assert "0.00045721" in text
        assert "0.00051" in text
        assert "∞" in text


def test_several_networks_share_neither_rows_nor_lines() -> None:
    small, large = (quantized(chain(count), torch.randn(16, 6)) for count in (2, 4))
    record = Record("", [Row("float", {"RMSE": 1.0}), Row("quantized", {"RMSE": 2.0})])
    alike = compare_page([("a", small, record), ("b", small, record)])
    text = compare_page([("a", small, record), ("b", small, record), ("c", large, record)])
    assert (alike.count('<th scope="row" class="whole">float'), alike.count("weight bits of each layer")) == (1, 1)
    assert "different networks" not in alike
    assert "2 different networks" in text
    assert re.findall(r'<th scope="row" class="whole">(float of [^<]*)', text) == ["float of a, b", "float of c"]
    tables = text.split("weight bits of each layer")[1:]
    assert [re.findall(r'<th scope="row">(\d)<', table) for table in tables] == [["0", "2"], ["0", "2", "3", "4"]]


def test_of_several_outputs_the_worst_is_named(mixed: brecq.QuantResult) -> None:
    outputs = [OutputNoise("a", (), 100.0, 1.0), OutputNoise("b", (), 10.0, 1.0)]
    result = dataclasses.replace(mixed, report=dataclasses.replace(mixed.report, outputs=outputs))
    shown = 'lowest SQNR of 2 outputs</dt><dd>10.0 dB</dd><dd class="small">b, on 16 calibration samples'
    assert shown in page(result, Record())


def test_a_tuning_that_was_undone_says_so(mixed: brecq.QuantResult) -> None:
    before = mixed.report.blocks
    for after, shown in ((2e-6, "3.56e-06 → 2e-06 at the outputs."), (3.56e-6, "3.56e-06 at the outputs: it gained")):
        tuning = BlockReport("end to end", (), 10, 3.56e-6, after, 1.0, "tuning")
        report = dataclasses.replace(mixed.report, blocks=[*before, tuning])
        result = dataclasses.replace(
            mixed, report=report, config=dataclasses.replace(mixed.config, method="reconstruct")
        )
        assert shown in page(result, Record())


def test_a_result_that_overflowed_has_a_page_again_after_loading(tmp_path: Path) -> None:
    """JSON has no NaN: what was not known comes back as that."""
    result = quantized(chain(3), torch.randn(16, 6))
    first, *others = result.report.blocks
    result.report.blocks = [dataclasses.replace(first, error_after=math.nan), *others]
    result.report.outputs = [OutputNoise("", (), math.inf, math.nan)]
    result.report.tensors = [dataclasses.replace(each, noise=math.inf) for each in result.report.tensors]
    loaded = brecq.load(result.save(tmp_path / "out"))
    assert math.isnan(loaded.report.outputs[0].sqnr)
    record = Record()
    text = page(loaded, record)
    assert "NaN dB" in text
    assert card(loaded, record, "me/net").startswith("---")
    assert "NaN" in compare_page([("a", loaded, record), ("b", result, record)])


def ticks(svg: str, axis: str) -> list[str]:
    """The labels of an axis."""
    groups = re.split(rf'id="\w+-{axis}tick_', svg)[1:]
    labels = [re.search("<text.*?>(.*?)</text>", group, re.DOTALL) for group in groups]
    return [re.sub(r"<[^>]*>|\s", "", label.group(1)) for label in labels if label]


def test_a_logarithmic_axis_has_several_different_labels() -> None:
    """Also of values that are near each other, and of zeros alone; what is zero stands hollow at its edge."""
    near = ticks(charts.loss_against("size", [(1, 4.2e-5, "chosen"), (2, 4.9e-5, "2 bits")]), "y")
    assert near[:2] == ["4e-05", "5e-05"]
    few = ticks(charts.loss_against("size", [(1, 2.2e-3, "chosen"), (2, 0.04, "2 bits")]), "y")
    assert few[:5] == ["0.002", "0.005", "0.01", "0.02", "0.05"]
    many = charts.loss_against("size", [(1, 0.0, "chosen"), (2, 0.4, "2 bits"), (3, 0.0004, "3 bits")])
    assert ticks(many, "y")[0] != ticks(many, "y")[1]
    assert "1e-12" not in many
    assert "hollow: exactly 0" in many
    assert many.count("fill: var(--paper)") == 1
    assert "hollow" not in charts.matches("Mean", [("noise", [0.31, 0.33])])
    assert "hollow" in charts.matches("Mean", [("noise", [0.0, 0.0])])


@pytest.mark.parametrize(("metric", "value", "most"), [("agreement %", 100.0, 100), ("SSIM vs float", 1.0, 1.0)])
def test_an_axis_ends_where_its_metric_does(metric: str, value: float, most: float) -> None:
    labels = ticks(charts.size_against(metric, [[(1, value, "a"), (2, 0.97 * value, "b")]]), "y")
    assert max(map(float, labels)) == most
