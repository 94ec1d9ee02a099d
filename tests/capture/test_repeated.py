"""Layers of learned queries: constants, folded where each sample gets the same, float and unlisted elsewhere."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, Recipe
from brecq.capture.export import capture
from brecq.converted.layers import weighted_layers
from brecq.graph import ops
from brecq.page.facts import gather

Order = Literal["batch first", "queries first", "flat"]


class Queries(nn.Module):
    """Learned queries go through two layers before they look at the picture; one of these is read again behind."""

    def __init__(self, order: Order) -> None:
        super().__init__()
        self.order = order
        self.conv, self.query = nn.Conv2d(3, 8, 3, 2, 1), nn.Embedding(5, 8)
        self.mix, self.shared, self.key, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x).relu().flatten(2).transpose(1, 2)
        if self.order == "queries first":
            query = self.query.weight.unsqueeze(1).repeat(1, x.shape[0], 1)
            query = self.shared(query + self.mix(query).relu()).transpose(0, 1)
        else:
            query = self.query.weight.unsqueeze(0).repeat(x.shape[0], 1, 1)
            query = query.flatten(0, 1) if self.order == "flat" else query
            query = self.shared(query + self.mix(query).relu()).view(x.shape[0], 5, 8)
        found = (query @ self.key(features).transpose(1, 2)).softmax(-1) @ features
        return self.out(self.shared(found))


@pytest.mark.parametrize(("order", "left"), [("batch first", 0), ("queries first", 0), ("flat", 2)])
def test_layers_of_queries_are_constants(order: Order, left: int) -> None:
    torch.manual_seed(0)
    model = Queries(order).eval()
    graph = capture(model, (torch.randn(2, 3, 8, 8),))
    assert sum(bool(ops.kind(node)) for node in graph.graph.nodes) == 4 + left
    for samples in (1, 2, 5):
        x = torch.randn(samples, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("order", ["batch first", "flat"])
def test_the_report_lists_the_layers_that_are_quantized(order: Order) -> None:
    """Those of queries were rounded and listed nowhere, and the page failed for it."""
    torch.manual_seed(0)
    recipe = Recipe.preset("fast").replace(steps=2, batch_size=4)
    model, x = Queries(order).eval(), torch.randn(8, 3, 8, 8)
    result = brecq.quantize(model, x, QuantConfig(weights=4, activations=8, recipe=recipe))
    listed = [entry.layer for entry in result.report.scope if entry.weights]
    assert listed == ["conv", "key", "shared", "out"]
    assert [layer.name for layer in gather(result).layers if layer.able] == listed
    assert len(weighted_layers(result.converted)) == 4
    with torch.no_grad():
        expected = model(x)
        assert float((result.model(x) - expected).square().mean() / expected.square().mean()) < 0.01
