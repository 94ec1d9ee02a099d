"""The pages of a search and of distilled inputs: every number is on them, and a click on a point shows its bits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import brecq
from brecq.errors import ExportError
from brecq.page.distilled import distilled_page
from brecq.page.facts import gather
from brecq.page.node_data import write_node_data
from brecq.page.search import search_page
from brecq.synthesis.config import DistillConfig
from brecq.synthesis.match import LayerMatch


@pytest.fixture(scope="module")
def found(
    sensitivities: brecq.SensitivityTable,
) -> tuple[brecq.SensitivityTable, brecq.BitAllocation, list[brecq.BitAllocation], str]:
    table = sensitivities
    front = brecq.pareto(table, "size", 5)
    chosen = brecq.search(table, f"size={front[1].costs['size']:.0f}B")
    return table, chosen, front, search_page(table, chosen, [("2 bits", front[0])], front, "size", "fisher")


def test_a_search_is_on_its_page(
    found: tuple[brecq.SensitivityTable, brecq.BitAllocation, list[brecq.BitAllocation], str],
) -> None:
    table, chosen, front, text = found
    for knob in table.knobs:
        assert not knob.free or knob.name in text
    for (_, _), loss in table.diagonal("fisher").items():
        assert f"{loss:.2g}" in text
    points = json.loads(re.search(r'id="points">(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    assert len(points) == len(front) + 2
    assert [bits[:2] for bits in points[0]] == [list(bits) for bits in chosen.layers.values()]
    assert [bits[:2] for bits in points[1]] == [list(bits) for bits in front[0].layers.values()]
    assert len(re.findall(r'class="point" data-point', text)) == len(points)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)


def test_distilled_inputs_are_on_their_page() -> None:
    layers = [LayerMatch("bn1", 1.5, 0.25, 2.5, 0.125), LayerMatch("bn<2>", 3.5, 0.5, 4.5, 0.375)]
    text = distilled_page(64, 12.0, "fast: spectrum", layers, b"picture")
    for number in (">1.50<", ">0.250<", ">2.50<", ">0.125<", ">3.50<", ">0.375<"):
        assert number in text
    assert "bn&lt;2&gt;" in text
    assert "data:image/png;base64,cGljdHVyZQ==" in text
    leaves = distilled_page(64, 1.0, DistillConfig.preset("leaves").describe(), [], None)
    assert "no batch norm" in leaves
    assert "Settings: leaves: pictures of dead leaves, drawn without looking at the network" in leaves


def test_node_data_name_tensors_of_the_file(networks: ModuleType, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    torch.manual_seed(0)
    model = networks.build(networks.MobileNet)
    data = torch.randn(16, *networks.inputs(model)[0].shape[1:])
    result = brecq.quantize(model, data, brecq.QuantConfig(weights=4, activations=8, method="rtn"))
    brecq.export(result, tmp_path / "net.onnx")
    files = {
        file.name: json.loads(file.read_text()) for file in write_node_data(result, tmp_path / "net.onnx", tmp_path)
    }
    assert set(files) == {"net.sqnr.json", "net.bits.json", "net.bytes.json"}
    graph = onnx.load(tmp_path / "net.onnx").graph
    produced = {output: node for node in graph.node for output in node.output}
    layers = {layer.name: layer for layer in gather(result).layers}
    for content in files.values():
        assert len(content[graph.name]["results"]) == len(layers)
    for tensor, value in files["net.bits.json"][graph.name]["results"].items():
        assert value["value"] == layers[produced[tensor].name.rpartition("/")[0]].bits
    other = brecq.quantize(
        torch.nn.Sequential(torch.nn.Linear(3, 2)), torch.randn(8, 3), brecq.QuantConfig(method="rtn")
    )
    with pytest.raises(ExportError, match=r"net\.onnx is of another result"):
        write_node_data(other, tmp_path / "net.onnx", tmp_path)
