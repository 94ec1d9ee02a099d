"""Codes learned by the straight-through gradient."""

from __future__ import annotations

import torch

from brecq.quant.affine import IntRange
from brecq.quant.grid import Grid
from brecq.quant.learners import MovingCodes

GRID = Grid(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.0]), IntRange(0, 3), 0)
CODES = torch.tensor([[0, 1, 3], [3, 2, 0]], dtype=torch.int8)


def test_it_starts_from_the_codes_and_their_values() -> None:
    learner = MovingCodes(CODES, GRID)
    assert torch.equal(learner(torch.empty(2, 3)), GRID.dequantize(CODES))
    assert torch.equal(learner.result()["codes"], CODES)
    assert torch.equal(learner.result()["scale"], GRID.scale)


def test_the_gradient_of_a_position_is_that_of_the_value_times_the_step() -> None:
    learner = MovingCodes(CODES, GRID)
    upstream = torch.randn(2, 3)
    learner(torch.empty(2, 3)).backward(upstream)
    assert torch.equal(learner.position.grad, upstream * GRID.scale[:, None])
    expected = (upstream * GRID.dequantize(CODES)).sum(1)
    assert torch.allclose(learner.theta.grad, expected)


def test_positions_move_codes_by_more_than_one_and_stay_on_the_grid() -> None:
    learner = MovingCodes(CODES, GRID)
    moves = torch.tensor([[2.6, 0.4, 0.7], [-1.4, 0.6, -5.0]])
    with torch.no_grad():
        learner.position.add_(moves)
    assert learner.result()["codes"].tolist() == [[3, 1, 3], [2, 3, 0]]
    learner(torch.empty(2, 3)).sum().backward()
    assert (learner.position.grad == 0).tolist() == [[False, False, True], [False, False, True]]
