"""What could not be loaded again is refused before anything is learned, and noted where nobody asked for a folder."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import CheckpointError, QuantConfig
from brecq.checkpoint import program


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(4, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cell(self.first(x))[0][:, -1])


class Selects(nn.Module):
    """Sizes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return y[y.mean(1) > 0]


def test_what_could_not_be_loaded_is_refused_before_learning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = QuantConfig(4, 8, recipe=brecq.Recipe.preset("fast").replace(steps=2, range_candidates=8))
    model, x = Recurrent().eval(), torch.randn(16, 7, 4)
    brecq.load(brecq.quantize(model, x, config, run_dir=tmp_path / "a").save(tmp_path / "a"))
    # without it the shapes of recurrent layers cannot be told for a batch of any size
    monkeypatch.setattr(program, "enable_python_dispatcher", nullcontext)
    with pytest.raises(CheckpointError, match="could not be loaded again: the program does not run: "):
        brecq.quantize(model, x, config, run_dir=tmp_path / "b")
    assert not list(tmp_path.glob("b/**/*.safetensors"))
    notes = brecq.quantize(model, x, config).report.notes
    assert sum("can be used and exported, but not saved: " in note for note in notes) == 1


def test_sizes_that_depend_on_values_are_loaded_again(tmp_path: Path) -> None:
    model, x = Selects().eval(), torch.randn(64, 4)
    result = brecq.quantize(model, x, QuantConfig(8, 8, method="rtn"))
    assert not [note for note in result.report.notes if "saved" in note]
    assert torch.equal(brecq.load(result.save(tmp_path / "r")).model(x), result.model(x))
