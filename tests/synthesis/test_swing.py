"""Swing convolution: a random shift, edges reflected."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brecq.synthesis.swing import random_window, swing_convolutions


@settings(deadline=None, max_examples=40)
@given(sides=st.lists(st.integers(1, 9), min_size=1, max_size=3), data=st.data())
def test_the_window_is_a_shift_with_reflected_edges(sides: list[int], data: st.DataObject) -> None:
    stride = tuple(data.draw(st.integers(1, 4)) for _ in sides)
    x = torch.arange(2 * torch.tensor(sides).prod()).reshape(1, 2, *sides).float()
    found = random_window(x, stride, torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    assert found.shape == x.shape

    def shifted(shift: int, side: int) -> torch.Tensor:  # what is at index i, in plain arithmetic
        index = torch.arange(side) + shift
        return (side - 1 - (side - 1 - index.abs()).abs()) if side > 1 else index * 0

    ranges = [range(-min(s, side) + 1, min(s, side)) for s, side in zip(stride, sides, strict=True)]
    matches = 0
    for shifts in torch.cartesian_prod(*(torch.tensor(list(r)) for r in ranges)).reshape(-1, len(sides)).tolist():
        expected = x
        for dim, (shift, side) in enumerate(zip(shifts, sides, strict=True), start=2):
            expected = expected.index_select(dim, shifted(shift, side))
        matches += torch.equal(found, expected)
    assert matches


def test_all_shifts_occur() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(8.0).reshape(1, 1, 8)
    found = {tuple(random_window(x, (3,), generator).flatten().tolist()) for _ in range(100)}
    assert len(found) == 5


def test_only_strided_convolutions_swing() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1))
    x = torch.randn(2, 3, 9, 9)
    plain = network(x)
    with swing_convolutions(network, torch.Generator().manual_seed(1)):
        swung = [network(x) for _ in range(8)]
        same = network[0](x)
    assert len({tuple(output.flatten().tolist()) for output in swung}) > 1
    assert torch.equal(same, network[0](x))
    assert torch.equal(network(x), plain)  # no hook is left behind


@pytest.mark.parametrize("stride", [(1,), (1, 1)])
def test_without_stride_nothing_moves(stride: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *[5] * len(stride))
    assert random_window(x, stride, torch.Generator()) is x
