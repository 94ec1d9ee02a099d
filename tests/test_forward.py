"""Batches and eval mode."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from brecq.errors import DataError
from brecq.forward import evaluating, even_slices


@given(count=st.integers(1, 200), size=st.integers(1, 70))
def test_even_slices_cover_everything_once(count: int, size: int) -> None:
    slices = list(even_slices(count, size))
    lengths = [s.stop - s.start for s in slices]
    assert [i for s in slices for i in range(count)[s]] == list(range(count))
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(slices) == -(-count // size)
    with pytest.raises(DataError, match="batch size is 0"):
        list(even_slices(count, 0))


def test_evaluating_restores_modes_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    model[0].eval()
    with pytest.raises(RuntimeError, match="mat1 and mat2"), evaluating(model):
        model(torch.randn(1, 7))
    with evaluating(model):
        assert not model[1].training
    assert [module.training for module in model.modules()] == [True, False, True]


def test_evaluating_takes_exported_programs_and_calls_no_code_of_the_model() -> None:
    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> Merging:
            if not mode:
                self.weight.data.zero_()
            return super().train(mode)

    model = Merging(2, 2)
    program = torch.export.export(nn.Dropout(), (torch.ones(2, 3),)).module()
    assert model.training
    with evaluating(model, program):
        assert not model.training
    assert model.training
    assert bool(model.weight.any())
