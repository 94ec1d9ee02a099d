from __future__ import annotations

from itertools import product

import pytest
import torch

from brecq.quant.affine import IntRange
from brecq.quant.compensate import exact
from brecq.quant.compensate.exact import best_codes
from brecq.quant.compensate.row_grid import RowGrid

from .problems import error, problem


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_equals_trying_all_codes(bits: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 6 if bits == 2 else 4
    target, gram, grid = problem(seed, groups=3, rows=2, size=size, bits=bits)
    monkeypatch.setattr(exact, "_WIDTH", 1)
    found = best_codes(grid.codes(target), target, gram, grid)
    every = torch.tensor(list(product(range(grid.range.low, grid.range.high + 1), repeat=size)), dtype=torch.float64)
    for g, r in product(range(3), range(2)):
        one = RowGrid(grid.scale, grid.zero_point, grid.owner[g, r].expand(1, len(every), 1), grid.range)
        errors = error(every[None], target[g, r].expand(1, len(every), -1), gram[g : g + 1], one)
        reached = error(found, target, gram, grid)[g, r]
        torch.testing.assert_close(reached, errors.min())


def test_gives_up_without_losing_anything() -> None:
    target, gram, grid = problem(0, groups=2, rows=4, size=9, bits=4)
    start = grid.codes(target)
    few = error(best_codes(start, target, gram, grid, nodes=1), target, gram, grid)
    all_ = error(best_codes(start, target, gram, grid), target, gram, grid)
    assert (all_ <= few + 1e-12).all()
    assert (few <= error(start, target, gram, grid) + 1e-12).all()
    assert all_.sum() < few.sum()


def test_codes_stay_in_range() -> None:
    target, gram, _ = problem(0, groups=2, rows=4, size=9, bits=4)
    grid = RowGrid(
        torch.full((1,), 0.1).double(), torch.zeros(1).double(), torch.zeros(2, 4, 1).long(), IntRange(-3, 2)
    )
    codes = best_codes(grid.codes(target), target, gram, grid)
    assert codes.min() >= -3
    assert codes.max() <= 2
