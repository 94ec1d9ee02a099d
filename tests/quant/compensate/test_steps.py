"""Each step of the closed form against its definition."""

from __future__ import annotations

import pytest
import torch

from brecq.quant.compensate import columns
from brecq.quant.compensate.descent import descend, optimum
from brecq.quant.compensate.rounding import Factor
from brecq.quant.compensate.row_grid import RowGrid, fit, products
from brecq.quant.compensate.search import search

from .problems import error, problem

SIZES = [(1, 3, 12), (4, 2, 9), (1, 5, 1)]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("sizes", SIZES)
def test_compensated_rounding_hands_errors_on(bits: int, sizes: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the definition: fix a column, solve the least-squares problem of those that are open."""
    target, gram, grid = problem(1, *sizes, bits)
    scale, zero_point = (value.expand_as(target) for value in grid.steps())
    expected = torch.empty_like(target)
    for g in range(sizes[0]):
        left = gram[g].diagonal().argsort(descending=True, stable=True).tolist()
        values, H = target[g].clone(), gram[g]
        while left:
            j, *left = left
            code = ((values[:, j] / scale[g, :, j]).round() + zero_point[g, :, j]).clamp(
                grid.range.low, grid.range.high
            )
            expected[g, :, j] = code
            missing = values[:, j] - (code - zero_point[g, :, j]) * scale[g, :, j]
            if left:
                values[:, left] += missing[:, None] * torch.linalg.solve(H[left][:, left], H[left, j])
    for width in (128, 4):
        monkeypatch.setattr(columns, "COLUMNS", width)
        assert torch.equal(Factor.of(gram).round(target, grid), expected)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_factor_solves(sizes: tuple) -> None:
    target, gram, _ = problem(4, *sizes, bits=4)
    gram = (gram + gram.mT) / 2
    torch.testing.assert_close(Factor.of(gram).solve(target @ gram), target)


@pytest.mark.parametrize("sizes", SIZES)
def test_descent_sets_each_code_to_its_best(sizes: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    target, gram, grid = problem(2, *sizes, bits=3)
    codes = expected = grid.codes(target)
    for j in range(sizes[2]):
        trials = []
        for code in range(grid.range.low, grid.range.high + 1):
            trial = expected.clone()
            trial[:, :, j] = code
            trials.append(error(trial, target, gram, grid))
        expected = expected.clone()
        expected[:, :, j] = torch.stack(trials).argmin(0).double() + grid.range.low
    monkeypatch.setattr(columns, "COLUMNS", 5)
    found = descend(codes, target, gram, grid)
    assert torch.equal(found, expected)
    assert (error(found, target, gram, grid) <= error(codes, target, gram, grid) + 1e-12).all()


def test_the_optimum_cancels_the_gradient() -> None:
    target, gram, grid = problem(3, 2, 3, 7, bits=2)
    codes = grid.codes(target)
    best, values = optimum(codes, target, gram, grid), grid.values(codes)
    for j in range(7):
        moved = values.clone()
        moved[:, :, j] = best[:, :, j]
        slope = ((moved - target) @ gram)[:, :, j]
        torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-9, rtol=0)


@pytest.mark.parametrize("shared", ["row", "tensor", "across groups"])
def test_the_fitted_step_is_the_best(shared: str) -> None:
    target, gram, grid = problem(4, 2, 3, 8, bits=3)
    owner = {
        "row": grid.owner,
        "tensor": torch.zeros_like(grid.owner),
        "across groups": torch.arange(3).view(1, 3, 1).expand(2, 3, 1),
    }[shared]
    steps = int(owner.max()) + 1
    grid = RowGrid(grid.scale[:steps] * 1.3, grid.zero_point[:steps], owner, grid.range)
    codes, wanted = grid.codes(target), target @ gram
    before = grid.sums(error(codes, target, gram, grid))
    scaled = fit(products(codes, wanted, gram, grid), grid, shift=False)
    after = scaled.sums(error(codes, target, gram, scaled))
    assert torch.equal(scaled.zero_point, grid.zero_point)
    assert (after <= before + 1e-12).all()
    for factor in (0.99, 1.01):
        other = RowGrid(scaled.scale * factor, scaled.zero_point, owner, grid.range)
        assert (after <= other.sums(error(codes, target, gram, other)) + 1e-12).all()
    shifted = fit(products(codes, wanted, gram, grid), grid, shift=True)
    best = shifted.sums(error(codes, target, gram, shifted))
    for offset in (-1, 0, 1):
        moved = RowGrid(
            grid.scale, (grid.zero_point + offset).clamp(grid.range.low, grid.range.high), owner, grid.range
        )
        other = fit(products(codes, wanted, gram, moved), moved, shift=False)
        assert (best <= other.sums(error(codes, target, gram, other)) + 1e-9).all()


def test_codes_that_nothing_points_along_keep_their_step() -> None:
    target, gram, grid = problem(5, 1, 2, 4, bits=2)
    codes = grid.zero_point[grid.owner].expand_as(target)  # all values are zero
    kept = fit(products(codes, target @ gram, gram, grid), grid, shift=False)
    assert torch.equal(kept.scale, grid.scale)


def test_search_beats_descent_from_one_step() -> None:
    target, gram, grid = problem(6, 8, 1, 9, bits=2)
    codes = grid.codes(target)
    for _ in range(3):
        grid = fit(products(codes, target @ gram, gram, grid), grid, shift=True)
        codes = descend(codes, target, gram, grid)
    found, searched = search(target, gram, grid, shift=True)
    assert (error(found, target, gram, searched) <= error(codes, target, gram, grid) * 1.01).all()
    assert error(found, target, gram, searched).sum() < 0.9 * error(codes, target, gram, grid).sum()
