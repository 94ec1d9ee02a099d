"""Samples that take the ranges from all others are named; what networks usually get is let alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig
from brecq.data import Dataset
from brecq.data.extremes import unlike


def said(*inputs: Tensor, names: list[str] | None = None) -> str | None:
    return unlike(inputs, Dataset(inputs, names=names or []))


@pytest.mark.parametrize("value", [1e30, -3e38, 1e4])
def test_one_value_is_named_with_its_sample(value: float) -> None:
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[17, 1, 2, 3] = value
    found = said(x, names=[f"{number}.jpg" for number in range(40)])
    assert found is not None
    assert found.startswith(f"sample 17 (17.jpg) reaches {abs(value):.3g}, where samples typically reach ")
    typical = float(found.partition("typically reach ")[2].partition(":")[0])
    assert typical == pytest.approx(float(x.abs().flatten(1).amax(1).median()), rel=1e-2)


def test_of_several_inputs_the_one_is_named_and_of_several_samples_how_many() -> None:
    x = torch.ones(10, 4)
    y = x.clone()
    y[3], y[8] = 1e9, 1e12
    assert said(x, x) is None
    assert said(x, y).startswith(
        "sample 8 of input 1 reaches 1e+12, where samples typically reach 1, and 1 more samples"
    )
    assert "of input depth reaches" in unlike({"x": x, "depth": y}, Dataset((x, y), keys=("x", "depth")))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(6, 4),
        torch.ones(6, 0),
        torch.eye(6)[:, :4],  # zero in some samples, even in most
        torch.cat([torch.zeros(9, 4), 1e30 * torch.ones(1, 4)]),  # with nothing to compare with
        torch.tensor([1e-6, 1.0, 1e9]).expand(6, 3),  # features of other units
        torch.full((6, 3), -3.4e38),  # an attention's mask
        torch.logspace(-2, 2, 6)[:, None],  # sounds from quiet to loud
        torch.tensor([0, 2**40, 3, 4]),
        torch.tensor([[1e30]]),
    ],
    ids=str,
)
def test_what_networks_get_is_let_alone(x: Tensor) -> None:
    assert said(x) is None


@pytest.mark.parametrize("submodule", [None, "0"])
def test_quantize_says_so_before_any_work(submodule: str | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    x[9, 2] = 1e10
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 2))
    with pytest.warns(UserWarning, match=r"sample 9 reaches 1e\+10"):
        result = brecq.quantize(model, x, QuantConfig(8, 8, method="rtn"), submodule=submodule)
    assert any("sample 9 reaches 1e+10" in note for note in result.report.notes)
    with pytest.warns(UserWarning, match=r"sample 9 reaches 1e\+10"):
        brecq.measure_sensitivity(model, x, QuantConfig(first_last=None))


class Inverse(nn.Module):
    """Divides by how much a sample varies: one that hardly does takes the range of what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(17, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.first(x).relu(), 1 / (x.std(1, keepdim=True) + 1e-9)], 1))


@pytest.mark.parametrize("method", ["rtn", "reconstruct"])
def test_an_activation_that_one_sample_takes_the_range_of_is_named_with_it(method: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(128, 8)
    config = QuantConfig(8, 8, method=method, recipe=brecq.Recipe(steps=2))  # type: ignore[arg-type]
    result = brecq.quantize(Inverse().eval(), x, config)
    assert not any("where samples typically reach" in note for note in result.report.notes)
    x[77] = 0.5
    result = brecq.quantize(Inverse().eval(), x, config)
    (said,) = [note for note in result.report.notes if "where samples typically reach" in note]
    assert "of sample 77 reaches 1e+09, where samples typically reach" in said
