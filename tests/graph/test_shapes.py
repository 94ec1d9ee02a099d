"""How large tensors are whose shapes are symbols."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brecq.capture.export import capture
from brecq.graph.shapes import captured_samples, numel_of_sample
from brecq.reconstruct.need import alive


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.shift = nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.shift


def test_sizes_of_a_sample_are_those_it_was_captured_with() -> None:
    x = torch.randn(2, 3, 37, 50)
    fixed, free = (capture(Shifted(), (x,), any_size=free) for free in (False, True))
    for graph in (fixed, free):
        assert captured_samples(graph.graph) == 2
        found = {node.name: numel_of_sample(node.meta["val"], 2) for node in graph.graph.nodes if node.op != "output"}
        assert found["x" if "x" in found else "input_1"] == 3 * 37 * 50
        assert found["conv2d"] == 8 * 19 * 25
        assert found["shift"] == 0
    assert alive(free) == alive(fixed) == 4 * (3 * 37 * 50 + 8 * 19 * 25)
