"""Terms beside the matching of statistics, against plain arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brecq.synthesis.terms import class_loss, entropy_loss, input_loss, total_variation


def test_total_variation_adds_up_neighbours() -> None:
    x = torch.randn(2, 3, 4, 5)
    rows = sum(float((x[:, :, i + 1] - x[:, :, i]).abs().sum()) for i in range(3)) / (2 * 3 * 3 * 5)
    columns = sum(float((x[..., i + 1] - x[..., i]).abs().sum()) for i in range(4)) / (2 * 3 * 4 * 4)
    assert float(total_variation(x)) == pytest.approx(rows + columns, rel=1e-5)
    assert float(total_variation(torch.randn(4, 7))) == 0


def test_normalized_inputs_are_what_input_loss_asks_for() -> None:
    x = torch.randn(8, 3, 6, 6)
    normalized = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True)
    assert float(input_loss(normalized)) < 1e-8
    assert float(input_loss(3 * normalized + 2)) == pytest.approx(2**2 + 2**2, rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(classes=st.integers(2, 6), seed=st.integers(0, 999), scale=st.floats(0.01, 50))
def test_entropy_is_minus_the_mutual_information(classes: int, seed: int, scale: float) -> None:
    logits = scale * torch.randn(10, classes, generator=torch.Generator().manual_seed(seed))
    found = float(entropy_loss(logits))
    assert -math.log(classes) - 1e-4 <= found <= 1e-4
    mean = logits.softmax(1).mean(0)
    divergence = (logits.softmax(1) * (logits.log_softmax(1) - mean.log())).sum(1).mean()  # KL to the mean
    assert found == pytest.approx(-float(divergence), abs=1e-3)


def test_entropy_at_its_ends() -> None:
    assert float(entropy_loss(100 * torch.eye(4))) == pytest.approx(-math.log(4), rel=1e-4)
    assert float(entropy_loss(torch.ones(4, 4))) == pytest.approx(0, abs=1e-6)


def test_class_loss_is_least_for_the_class_asked_for() -> None:
    classes = torch.tensor([0, 1, 2])
    assert float(class_loss(10 * torch.eye(3), classes)) < 1e-3 < float(class_loss(10 * torch.eye(3), classes.flip(0)))
