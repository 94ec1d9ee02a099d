"""Attention over any number of dimensions reaches ONNX; what does not is refused by its operator and module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brecq
from brecq import ExportError, QuantConfig
from brecq.capture.export import capture
from brecq.deploy.onnx.attention import spell_out_attention

pytest.importorskip("onnxruntime", reason="needs the extra onnx")

attention = F.scaled_dot_product_attention
HIDDEN = torch.ones(6, 6, dtype=torch.bool).tril()
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda y: attention(y, y, y),
    "scaled": lambda y: attention(y, y.flip(-2), y, scale=0.3),
    "causal": lambda y: attention(y, y, y, is_causal=True),
    "hidden": lambda y: attention(y, y, y, attn_mask=HIDDEN),
    "biased": lambda y: attention(y, y, y, attn_mask=torch.linspace(-2, 2, 36).view(6, 6)),
}


class Attends(nn.Module):
    def __init__(self, form: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inside, self.outside, self.form, self.shape = nn.Linear(8, 8), nn.Linear(8, 8), form, shape

    def forward(self, x: Tensor) -> Tensor:  # [N, 12, 8]
        return self.outside(self.form(self.inside(x).reshape(x.shape[0], *self.shape, 6, 8)).reshape(x.shape))


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_attention_is_spelled_out_as_pytorch_computes_it(name: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(5, 12, 8)
    graph = capture(Attends(FORMS[name], shape).eval(), (x,))
    spelled = spell_out_attention(graph)
    assert not [node for node in spelled.graph.nodes if "attention" in str(node.target)]
    torch.testing.assert_close(spelled(x), graph(x))


def test_four_dimensions_are_left_to_the_exporter() -> None:
    graph = capture(Attends(FORMS["plain"], (2,)).eval(), (torch.randn(5, 12, 8),))
    assert spell_out_attention(graph) is graph


@pytest.mark.parametrize("name", ["plain", "causal"])
def test_the_file_computes_what_the_network_does(name: str, tmp_path: Path) -> None:
    model, x = Attends(FORMS[name], (2, 1, 1)).eval(), torch.randn(16, 12, 8)
    result = brecq.quantize(model, x, QuantConfig(8, 8, method="rtn"))
    brecq.export(result, tmp_path / "m.onnx")
    found = brecq.verify(result, tmp_path / "m.onnx", x)
    assert found.as_expected
    assert found.quantized.mean < 1


class Rolls(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(x.shape[0] // 2, 0)


def test_what_onnx_cannot_say_names_operator_module_and_reason(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(Rolls()), nn.Conv2d(4, 4, 1)).eval()
    result = brecq.quantize(model, torch.randn(8, 3, 6, 6), QuantConfig(8, 8, method="rtn"))
    with pytest.raises(ExportError, match=r"in ONNX: roll( in '2\.0')?: its arguments depend on the batch size"):
        brecq.export(result, tmp_path / "m.onnx")
