"""Networks that choose by order: ties fall as in ONNX files, and near ties are named where a file parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig
from brecq.deploy.simulate import choices
from brecq.graph import ops

aten = ops.aten


class Chooser(nn.Module):
    """Like RT-DETR: of all tokens those with the best scores go on, each with what its place brings."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.embed, self.score, self.head = how, nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(8, 3)
        self.places = nn.Parameter(torch.randn(1, 20, 8))

    def forward(self, x: Tensor) -> Any:
        y = self.embed(x).relu()
        scores = self.score(y).squeeze(-1)
        order = scores.topk(5, 1).indices if self.how == "topk" else torch.argsort(scores, 1, descending=True)
        index = order[:, :5]
        return self.head((y + self.places).gather(1, index[..., None].expand(-1, -1, 8)))


def tokens() -> Tensor:
    """Every token twice."""
    x = torch.randn(32, 10, 6, generator=torch.Generator().manual_seed(0))
    return torch.cat([x, x], 1)


@pytest.mark.parametrize("how", ["topk", "argsort"])
def test_ties_fall_as_in_onnx_runtime(tmp_path: Path, how: str) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    result = brecq.quantize(Chooser(how).eval(), tokens(), QuantConfig(8, 8, method="rtn"))
    exported = brecq.export(result, tmp_path / "m.onnx")
    assert brecq.verify(result, exported.path, tokens()).as_expected


def test_a_runtime_that_chooses_others_is_told_from_a_broken_file(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    result = brecq.quantize(Chooser("topk").eval(), tokens(), QuantConfig(8, 8, method="rtn"))
    found = brecq.verify(result, brecq.export(result, tmp_path / "m.xml").path, tokens())
    named = [failure for failure in found.failures if "topk chooses among values that tie" in failure]
    assert found.as_expected or named  # which of equal values OpenVINO takes is its own to say


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [
        (aten.topk.default, (3, 1), {}),
        (aten.topk.default, (2,), {"dim": 0, "largest": False}),
        (aten.sort.default, (1, True), {}),
        (aten.sort.stable, (), {"stable": True, "dim": 0, "descending": True}),
        (aten.argsort.default, (), {}),
        (aten.argsort.stable, (), {"stable": True, "dim": 0}),
    ],
    ids=str,
)
def test_without_ties_the_choice_is_pytorchs(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(1))
    found, expected = choices.chosen(target, (x, *args), kwargs), target(x, *args, **kwargs)
    pairs = [(found, expected)] if isinstance(expected, Tensor) else zip(found, expected, strict=True)
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs)


def test_of_equal_values_the_first_comes_first() -> None:
    values, index = choices.chosen(aten.topk.default, (torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0]), 3), {})
    assert (values.tolist(), index.tolist()) == ([3, 3, 2], [1, 3, 2])


class Best(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.topk(2, 1).values


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([4.0, 3.0, 2.0, 1.0, 1.0], ""),  # what is not taken may tie
        ([4.0, 3.0, 3.0, 1.0, 0.0], "topk chooses among values that tie or nearly do (1 of 2 neighbours"),
        ([4.0, 4.00001, 2.0, 1.0, 0.0], "topk chooses among values that tie or nearly do (1 of 2 neighbours"),
    ],
)
def test_near_ties_are_found_where_they_matter(row: list[float], said: str) -> None:
    x = torch.tensor([row])
    graph = torch.export.export(Best(), (x,)).module()
    found = choices.close_choices(graph, (x,))
    assert found[0].startswith(said) if said else not found
