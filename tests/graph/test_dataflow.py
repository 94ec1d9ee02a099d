"""Dataflow: what reads what, where a graph may be cut, what layers are called."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brecq.capture.export import capture
from brecq.config import QuantConfig
from brecq.graph import ops
from brecq.graph.dataflow import Dataflow
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer


def test_reads_and_layers(captured) -> None:
    flow = Dataflow(captured("ConcatNet"))
    kinds = [ops.op_name(node) for node in flow.ops]
    assert kinds == ["conv2d", "relu", "conv2d", "relu", "conv2d", "relu", "cat", "max_pool2d", "conv2d", "relu",
                     "mean", "linear"]  # fmt: skip
    assert flow.inputs == [[-1], [0], [1], [2], [1], [4], [3, 5], [6], [7], [8], [9], [10]]
    assert [layer for layer in flow.layers if layer] == ["stem", "left", "right", "fuse", "head"]
    assert (flow.weighted(0, 12), flow.weighted(1, 6), flow.weighted(6, 8)) == (5, 2, 0)
    assert flow.has_join(0, 7)
    assert not flow.has_join(7, 12)
    # between these points a single activation is live
    assert list(flow.regions(0, 12)) == [(0, 1), (1, 2), (2, 7), (7, 8), (8, 9), (9, 10), (10, 11), (11, 12)]


@pytest.mark.parametrize("name", ["ResNet", "ViT", "UNet", "FPN", "TwoBranch", "Functional"])
def test_fake_quantizers_change_nothing(captured, name: str) -> None:
    graph = captured(name)
    before = Dataflow(graph)
    after = Dataflow(prepare(graph, BrecqQuantizer(QuantConfig())))
    assert after.layers == before.layers
    assert after.inputs == before.inputs
    assert after.paths == before.paths
    assert [after.can_cut(i) for i in range(len(after.ops))] == [before.can_cut(i) for i in range(len(before.ops))]


class Folded(nn.Module):
    """Puts samples and windows into one dimension, as Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inside, self.after = nn.Linear(6, 6), nn.Linear(3, 3), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        windows = F.relu(self.inside(x.reshape(-1, 3)))
        return self.after(windows.reshape(x.shape[0], 6))


def test_no_cut_where_dimension_0_is_not_the_batch() -> None:
    flow = Dataflow(capture(Folded(), (torch.randn(2, 6),)))
    position = {layer: i for i, layer in enumerate(flow.layers) if layer}
    assert flow.can_cut(position["before"] + 1)
    assert flow.can_cut(position["after"])
    assert not flow.can_cut(position["inside"])
    assert not flow.can_cut(position["inside"] + 1)


def test_names_of_functional_and_repeated_layers(captured) -> None:
    assert [name for name in Dataflow(captured("Functional")).layers if name] == ["w0", "a1", "a2", "b1", "b2", "fc"]
    names = [name for name in Dataflow(captured("Recurrent")).layers if name]
    assert names == ["stem", "step", "step#2", "step#3", "head"]
    assert [name for name in Dataflow(captured("Standardized")).layers if name] == ["stem", "conv", "head"]
