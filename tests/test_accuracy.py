"""What quantization is for: networks stay accurate, and what makes it hard is there to be learned."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import brecq
from brecq import QuantConfig, Recipe
from brecq.checkpoint.tensors import collect_tensors


def config(weights: int, activations: int, steps: int, **changes: Any) -> QuantConfig:
    recipe = Recipe.preset("fast").replace(steps=steps, range_candidates=40)
    return QuantConfig(weights, activations, recipe=recipe, **changes)


def top1(model: nn.Module, trained: Any) -> float:
    found = brecq.evaluate(model, trained.test).top1
    assert found is not None
    return found


def test_inverted_residuals_keep_their_accuracy_at_two_bits(trained: Any) -> None:
    before = top1(trained.model, trained)
    nearest = brecq.quantize(trained.model, trained.calibration, config(2, 4, 1, method="rtn"))
    learned = brecq.quantize(trained.model, trained.calibration, config(2, 4, 60))
    assert before > 97
    assert top1(nearest.model, trained) < before - 5
    assert top1(learned.model, trained) > before - 3


def test_inverted_residuals_keep_their_accuracy_on_integers(trained: Any) -> None:
    result = brecq.quantize(trained.model, trained.calibration, config(4, 8, 1, method="rtn"))
    fake = top1(result.model, trained)
    assert fake > 95
    assert abs(top1(brecq.simulate(result), trained) - fake) <= 1


def test_weights_that_sum_to_zero(networks: ModuleType) -> None:
    """Rounded to nearest they do not, and shift the mean of their output; learned codes sum to it again."""
    model = networks.build(networks.EdgeDetectors)
    x = networks.inputs(model, 128)[0]
    with torch.no_grad():
        assert model.stem(x).mean() == pytest.approx(2, abs=0.1)
        assert float(model.depthwise.weight.sum((1, 2, 3)).abs().max()) < 1e-6
    nearest = brecq.quantize(model, x, config(4, 8, 1, method="rtn"))
    learned = brecq.quantize(model, x, config(4, 8, 120))
    (block,) = (block for block in learned.report.blocks if "depthwise" in block.layers)
    assert block.error_before > 0.15
    assert block.error_after < block.error_before / 3

    def imbalance(result: brecq.QuantResult) -> float:
        weight = collect_tensors(result.converted)["depthwise.weight"]
        return float(weight.dequantize().sum((1, 2, 3)).abs().mean())

    assert imbalance(learned) < imbalance(nearest) / 3
