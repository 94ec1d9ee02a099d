"""What a network returns of its parameters alone is in the file, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import brecq

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'brecq[onnx]'")


class WithConstants(nn.Module):
    """Returns its result, a sum over a quantized weight, and a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.anchors = nn.Parameter(torch.arange(5.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.fc(self.conv(x).relu().mean((2, 3))), self.fc.weight.sum(0), self.anchors


def test_constant_outputs_are_in_the_file(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    x = torch.randn(8, 3, 6, 6)
    result = brecq.quantize(WithConstants().eval(), x, brecq.QuantConfig(8, 8, method="rtn"))
    exported = brecq.export(result, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    _, weight, anchors = session.run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(weight), result.model(x)[1])
    assert anchors.tolist() == [0, 1, 2, 3, 4]
    assert [each.shape for each in session.get_outputs()] == [["batch", 2], [4], [5]]
    assert brecq.verify(result, exported.path, x).as_expected
