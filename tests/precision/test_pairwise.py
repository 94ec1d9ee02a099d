"""Functions of choices: against direct sums."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from brecq.precision.pairwise import Pairwise

SIZES = st.lists(st.integers(1, 4), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 10**6))
def test_values_and_changes_are_those_of_the_tables(sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    function = Pairwise(sizes)
    function.constant = 3.0
    single = [generator.normal(size=size) for size in sizes]
    pairs = {
        (i, j): generator.normal(size=(sizes[i], sizes[j]))
        for i in range(len(sizes))
        for j in range(len(sizes))
        if i != j
    }
    for variable, values in enumerate(single):
        function.add(variable, values)
    for (i, j), values in pairs.items():
        function.add_pair(i, j, values)

    def direct(choice: np.ndarray) -> float:
        return (
            3.0
            + sum(values[c] for values, c in zip(single, choice, strict=True))
            + sum(values[choice[i], choice[j]] for (i, j), values in pairs.items())
        )

    choices = np.stack([generator.integers(0, sizes) for _ in range(4)])
    np.testing.assert_allclose(function(choices), [direct(choice) for choice in choices], atol=1e-9)
    changes = function.changes(choices)
    for row, choice in enumerate(choices):
        for variable, size in enumerate(sizes):
            for other in range(changes.shape[2]):
                if other >= size:
                    assert changes[row, variable, other] == np.inf
                    continue
                moved = choice.copy()
                moved[variable] = other
                assert abs(changes[row, variable, other] - (direct(moved) - direct(choice))) < 1e-9


def test_a_sum_of_rows_and_columns_is_no_pair() -> None:
    function = Pairwise([3, 4])
    function.add_pair(1, 0, np.arange(4.0)[:, None] * 7 + np.arange(3.0)[None, :] ** 2)
    assert not function.pairs
    assert function(np.array([[2, 3]]))[0] == 25.0


def test_one_entry_of_a_pair_stays_one_entry() -> None:
    function = Pairwise([3, 3])
    values = np.zeros((3, 3))
    values[0, 0] = 0.7
    function.add_pair(0, 1, values)
    assert np.count_nonzero(function.pairs[0, 1]) == 1
