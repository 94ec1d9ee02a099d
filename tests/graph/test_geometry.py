"""The geometry read from a graph's operators gives their outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brecq.capture.export import capture
from brecq.graph import ops
from brecq.graph.fold import get_tensor
from brecq.graph.geometry import geometry_of

LAYERS = {
    "conv1d, same": (nn.Conv1d(4, 6, 4, padding="same", dilation=3), (2, 4, 20)),
    "conv1d, strided": (nn.Conv1d(4, 6, 3, 2, groups=2), (2, 4, 20)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0)), (2, 4, 9, 8)),
    "conv2d, depthwise": (nn.Conv2d(4, 8, 3, 1, 2, dilation=2, groups=4), (2, 4, 9, 8)),
    "conv2d, valid": (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 9, 8)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 5, 3, 2, 1, groups=2), (2, 4, 9)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, dilation=2), (2, 4, 5, 6)),
    "linear": (nn.Linear(5, 3), (2, 7, 5)),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_rows_times_patches_are_the_output(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    graph = capture(layer.eval(), (x,))
    (node,) = (node for node in graph.graph.nodes if ops.kind(node))
    geometry = geometry_of(node)
    weight = get_tensor(graph, str(node.args[1].target))
    assert layer.bias is not None
    y = layer(x) - layer.bias.view((-1,) if name == "linear" else (-1, *(1 for _ in shape[2:])))
    found = (geometry.rows(weight) @ torch.cat(list(geometry.patches(x)), dim=2)).flatten(0, 1)
    expected = y.flatten(0, 1).T if name == "linear" else y.transpose(0, 1).flatten(1)
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)
