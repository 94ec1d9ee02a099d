"""A handful of calibration values is said to be one."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import brecq
from brecq import QuantConfig


def noted(model: nn.Module, inputs: torch.Tensor, **config: int) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = QuantConfig(**{"weights": 8, "activations": 8, **config}, method="rtn")
        return brecq.quantize(model.eval(), inputs, settings).report.notes


def test_few_values_and_few_samples() -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    pooled.append(nn.ReLU()).append(nn.Linear(3, 2))
    x = torch.randn(64, 3, 8, 8)
    with pytest.warns(
        UserWarning, match=r"the range of the output of relu in '5' comes from 192 values \(64 samples\).*1 %"
    ):
        brecq.quantize(pooled, x, QuantConfig(8, 8, method="rtn"))
    with pytest.warns(
        UserWarning, match=r"tensors are calibrated on fewer than 200 values: .* 6 values \(2 samples\).*29 %"
    ):
        result = brecq.quantize(pooled, x[:2], QuantConfig(8, 8, method="rtn"))
    assert any("29 %" in note for note in result.report.notes)
    maps = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.warns(UserWarning, match=r"come from 2 samples, and a new sample exceeds each .* 67 %"):
        brecq.quantize(maps, x[:2], QuantConfig(8, 8, method="rtn"))
    assert not [note for note in noted(maps, x) if "samples" in note]
    assert not [note for note in noted(pooled, x[:2], activations=32) if "samples" in note]


def test_heights_and_widths_that_are_free_count(recwarn: pytest.WarningsRecorder) -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model = nn.Sequential(body, nn.ReLU())
    brecq.quantize(model, torch.randn(8, 3, 16, 16), QuantConfig(8, 8, method="rtn"), submodules=["0"])
    assert not [str(each.message) for each in recwarn if "samples" in str(each.message)]


class OverBatch(nn.Module):
    """A layer reads what is computed of the whole batch: how many values make its range is no matter of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.gains, self.conv, self.head = nn.Linear(3, 8), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)) * self.gains(x.mean((0, 2, 3))).view(1, 8, 1, 1))


def test_values_of_the_whole_batch_are_not_counted_as_none(recwarn: pytest.WarningsRecorder) -> None:
    brecq.quantize(OverBatch(), torch.randn(64, 3, 8, 8), QuantConfig(8, 8, method="rtn"))
    assert not [str(each.message) for each in recwarn if "values" in str(each.message)]
