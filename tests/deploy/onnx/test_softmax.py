"""Softmax between two grids: computed in float in ONNX Runtime, as its integer kernel rounds the scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brecq
from brecq import QuantConfig

session = pytest.importorskip("brecq.deploy.onnx.session", reason="needs the extra onnx")


class Gated(nn.Module):
    """A softmax over channels that a layer reads: on a grid before and behind it; `moved` before it is read."""

    def __init__(self, moved: bool) -> None:
        super().__init__()
        self.stem, self.body, self.moved = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), moved

    def forward(self, x: Tensor) -> Tensor:
        x = F.softmax(4 * self.stem(x), 1)
        return self.body(x.transpose(2, 3) if self.moved else x).mean((2, 3))


@pytest.mark.parametrize(("bits", "moved"), [(2, False), (2, True), (4, True), (8, False)])
def test_a_softmax_on_codes_has_the_simulators(tmp_path: Path, bits: int, moved: bool) -> None:
    """The kernel multiplies by the whole part of 1/scale: 2 for 3 at two bits, 14 for 15 at four."""
    torch.manual_seed(0)
    config = QuantConfig(8, bits, method="rtn", target="onnxruntime")
    result = brecq.quantize(Gated(moved).eval(), torch.randn(32, 3, 8, 8), config)
    file = brecq.export(result, tmp_path / "m.onnx").path
    kernels = session.load(file).kernels().operators
    assert "QLinearSoftmax" not in kernels
    assert kernels["Softmax"] == 1
    found = brecq.verify(result, file, torch.randn(16, 3, 8, 8), bisect=True)
    assert found.failures == ()
    assert {each.tensor: each.differing for each in found.tensors if "softmax" in each.tensor} == {"softmax.codes": 0}


def test_in_place_of_tensorrt_it_is_float_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = QuantConfig(8, 8, method="rtn", target="tensorrt")
    result = brecq.quantize(Gated(False).eval(), torch.randn(32, 3, 8, 8), config)
    file = brecq.export(result, tmp_path / "m.onnx", "tensorrt").path
    found = brecq.verify(result, file, torch.randn(16, 3, 8, 8), format="tensorrt", bisect=True)
    assert found.failures == ()
    assert [each.differing for each in found.tensors if "softmax" in each.tensor] == [0]
