"""A constant that is joined with codes, as a class token with its tokens, is codes where the runtime joins such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig
from brecq.deploy.simulate import simulate

X = torch.randn(64, 6, 8, generator=torch.Generator().manual_seed(0))


class WithToken(nn.Module):
    def __init__(self, rank: int = 3) -> None:
        super().__init__()
        self.rank, self.token = rank, nn.Parameter(torch.randn(1, 2, 8))
        self.before, self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x).relu()
        if self.rank == 4:  # a picture with a learned border
            y = torch.cat([self.token.reshape(1, 2, 2, 4).expand(len(x), -1, -1, -1), y.reshape(-1, 2, 6, 4)], 2)
            return self.head(self.conv(y).flatten(1)[:, :8])
        return self.head(self.layer(torch.cat([self.token.expand(len(x), -1, -1), y], 1)).relu())


def quantized(rank: int = 3, **config: Any) -> brecq.QuantResult:
    torch.manual_seed(0)
    return brecq.quantize(WithToken(rank).eval(), X, QuantConfig(8, 8, method="rtn", **config))


@pytest.mark.parametrize("target", [None, "litert"])
@pytest.mark.parametrize(("rank", "batch"), [(3, 1), (3, 4), (4, 1), (4, 4)])
def test_litert_joins_its_codes(tmp_path: Path, rank: int, batch: int, target: str | None) -> None:
    pytest.importorskip("ai_edge_litert")
    result = quantized(rank, target=target)
    exported = brecq.export(result, tmp_path / "m.tflite", batch=batch)
    found = brecq.verify(result, exported.path, X, bisect=True)
    assert (found.as_expected, found.exact) == (True, True)
    assert (found.kernels.integer, found.kernels.floating) == (3, 0)
    assert not any("float" in note for note in exported.notes)


@pytest.mark.parametrize("rank", [3, 4])
def test_so_does_c(tmp_path: Path, rank: int) -> None:
    result = quantized(rank, target="cmsis-nn")
    exported = brecq.export(result, tmp_path / "c", "cmsis-nn")
    assert brecq.verify(result, exported.path, X, format="cmsis-nn").as_expected


def test_onnx_runtime_computes_behind_it_in_float_and_the_file_says_so(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = quantized()
    exported = brecq.export(result, tmp_path / "m.onnx")
    assert any(note.startswith("computed in float: cat, linear") for note in exported.notes)
    found = brecq.verify(result, exported.path, X)
    assert (found.as_expected, found.exact) == (True, False)


@pytest.mark.parametrize("runtime", ["LiteRT", "FixedPoint", "OnnxRuntime"])
def test_simulators_stay_near_the_network(runtime: str) -> None:
    result = quantized()
    found, expected = simulate(result, runtime)(X), result.model(X)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_layers_in_float_are_named(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    result = quantized(rules=(brecq.LayerRule("layer", weights=32, activations=32),))
    exported = brecq.export(result, tmp_path / "m.tflite")
    assert exported.notes[0] == "2 layers at 8 bits, 1 in float (layer)"
    assert brecq.verify(result, exported.path, X).kernels.floats == ("layer",)
