"""Operators are called as the network's author wrote them."""

from __future__ import annotations

import torch
from torch import nn

import brecq


def test_operators_that_are_computed_by_others_keep_their_names() -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.ReLU6(), nn.Conv1d(4, 4, 3), nn.Hardtanh(-2, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(4, 2),
    )  # fmt: skip
    kinds = [entry.kind for entry in brecq.inspect(model, (torch.randn(4, 2, 12),), brecq.QuantConfig(8, 8)).scope]
    assert [kind for kind in kinds if "conv" not in kind] == ["relu6", "hardtanh", "adaptive_avg_pool1d", "linear"]
