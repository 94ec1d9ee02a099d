"""What is remembered of an activation until its range is chosen."""

from __future__ import annotations

import pytest
import torch

from brecq.quant import observer as module
from brecq.quant.affine import IntRange, fake_quantize
from brecq.quant.observer import END_VALUES, OBSERVED_VALUES, Observer
from brecq.quant.ranges import activation_range


def test_few_values_are_all_kept() -> None:
    """Drawn with replacement a third of them would be lost, and the range would clip what was seen."""
    observer = Observer()
    observer.begin(3)
    observer.add(torch.arange(448.0).view(64, 7))
    values, counts = observer.samples()
    assert torch.equal(values.sort().values, torch.arange(448.0))
    assert torch.equal(counts, torch.ones(448))


def heavy(batches: int, values: int) -> list[torch.Tensor]:
    """Behind a ReLU, with ends a hundred times as far out as the rest: what few values cost, many do not."""
    random = torch.Generator().manual_seed(0)
    drawn = [torch.randn(values, generator=random) for _ in range(batches)]
    return [(x * (1 + x.abs() ** 2)).relu() for x in drawn]


def observed(batches: list[torch.Tensor]) -> Observer:
    observer = Observer()
    for number, batch in enumerate(batches):
        observer.begin(number)
        observer.add(batch)
    return observer


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_range_is_nearly_that_of_all_values(bits: int) -> None:
    """Of 65 536 values drawn from two million, ends not kept, the range of 8 bits costs several times as much."""
    batches, range = heavy(16, 1 << 17), IntRange.activations(bits)
    every = torch.cat(batches)

    def cost(values: torch.Tensor, counts: torch.Tensor | None) -> float:
        scale, zero_point = activation_range(values, 0.0, every.max(), range, counts=counts)
        return float((fake_quantize(every, scale, zero_point, range) - every).abs().double().pow(2.4).mean())

    assert cost(*observed(batches).samples()) <= 1.02 * cost(every, None)


def test_what_is_kept_stands_for_all_and_is_bounded() -> None:
    batches = heavy(16, 1 << 15)
    values, counts = observed(batches).samples()
    assert len(values) <= OBSERVED_VALUES + END_VALUES
    assert float(counts.sum()) == pytest.approx(16 * (1 << 15), rel=1e-4)
    mean = float((values.double() * counts).sum() / counts.sum())
    assert mean == pytest.approx(float(torch.cat(batches).double().mean()), rel=0.03)
    largest = torch.cat(batches).topk(100).values
    assert torch.isin(largest, values).float().mean() > 0.95  # a batch may have more of its end than its share


def test_batches_in_another_order_or_process_leave_the_same() -> None:
    batches = heavy(4, 1 << 15)
    whole, parts = observed(batches), [Observer(), Observer()]
    for number in (3, 1, 2, 0):
        parts[number % 2].begin(number)
        parts[number % 2].add(batches[number])
    together = Observer()
    together.absorb(parts)
    assert all(torch.equal(a, b) for a, b in zip(whole.samples(), together.samples(), strict=True))
    assert (together.low, together.high) == (whole.low, whole.high)


def test_little_is_kept_of_each_of_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OBSERVED_VALUES", 1 << 12)
    monkeypatch.setattr(module, "END_VALUES", 1 << 11)
    values, counts = observed(heavy(32, 1 << 10)).samples()
    assert len(values) == (1 << 12) + (1 << 11)
    assert float(counts.sum()) == 32 * (1 << 10)
