"""Single moves, one knob to another of its bits: into the budgets, then to a lower loss while they hold."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from brecq.precision.pairwise import Choices, Floats
from brecq.precision.problem import Problem


def fit(problem: Problem, choices: Choices) -> Choices:
    """Allocations [P, knobs] moved into the budgets where single moves lead there, then greedily improved."""
    choices = choices.copy()
    for _ in range(sum(len(knob.bits) for knob in problem.knobs)):
        now, then = _violations(problem, choices)
        rows = np.flatnonzero(now > 0)
        if not len(rows):
            break
        saved = now[rows, None, None] - then[rows]
        lost = problem.loss.changes(choices[rows])
        with np.errstate(divide="ignore", invalid="ignore"):
            price = np.where(saved > 0, lost / saved, np.inf)
        # a move that loses nothing and saves much comes first: divided, its gain would count less the more it saves
        price = np.where((saved > 0) & (lost <= 0), -saved, price)
        moved = _apply(choices, rows, price)
        if not moved:
            break
    return _improve(problem, choices)


def _improve(problem: Problem, choices: Choices) -> Choices:
    for _ in range(sum(len(knob.bits) for knob in problem.knobs)):
        now, then = _violations(problem, choices)
        lost = problem.loss.changes(choices)
        spent = np.full(lost.shape, 1e-12)
        for cost, limit in problem.limits.items():
            spent = np.maximum(spent, problem.costs[cost].changes(choices) / limit)
        with np.errstate(invalid="ignore"):
            gain = np.where((then <= 0) & (lost < 0) & (now <= 0)[:, None, None], lost / spent, np.inf)
        if not _apply(choices, np.arange(len(choices)), gain):
            break
    return choices


def random_choices(problem: Problem, generator: Generator) -> Choices:
    """A random allocation that fits and that no single knob can be widened in: the baseline. Choices [knobs].

    Starts from uniform draws; random knobs are narrowed until it fits, then random ones widened while it does.
    """
    sizes = np.array([len(knob.bits) for knob in problem.knobs])
    choices = generator.integers(0, sizes)
    while not problem.feasible(choices):
        lower = np.flatnonzero(choices > 0)
        if not len(lower):
            break
        choices[generator.choice(lower)] -= 1
    for knob in generator.permutation(len(sizes)):
        while choices[knob] + 1 < sizes[knob]:
            choices[knob] += 1
            if not problem.feasible(choices):
                choices[knob] -= 1
                break
    return choices


def _violations(problem: Problem, choices: Choices) -> tuple[Floats, Floats]:
    """By what share the limits are exceeded, summed over costs: now [P], and after each move [P, knobs, bits]."""
    now = np.zeros(len(choices))
    then = np.zeros((len(choices), *problem.loss.single.shape))
    for cost, limit in problem.limits.items():
        function = problem.costs[cost]
        value = function(choices)
        now += np.maximum(value - limit, 0) / limit
        then += np.maximum(value[:, None, None] + function.changes(choices) - limit, 0) / limit
    return now, then


def _apply(choices: Choices, rows: Choices, price: Floats) -> bool:
    """Make the cheapest finite move of each row; `price` is [rows, knobs, bits]. False if there is none."""
    flat = price.reshape(len(rows), -1)
    best = flat.argmin(1)
    possible = np.isfinite(flat[np.arange(len(rows)), best])
    knob, bits = np.unravel_index(best[possible], price.shape[1:])
    choices[rows[possible], knob] = bits
    return bool(possible.any())
