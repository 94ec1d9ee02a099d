"""Writes in place are spelled out without a second trace where nobody can tell, and by one where views are written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from brecq.capture.export import capture


class Net(nn.Module):
    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def chain(net: Net, x: Tensor) -> Tensor:
    x = F.hardswish(F.relu(net.norm(net.conv(x)), inplace=True), inplace=True)
    x += 1
    return F.dropout(x.to(torch.float32), 0.5, training=False)


def read_before(net: Net, x: Tensor) -> Tensor:
    x = net.conv(x)
    double = x * 2
    x.relu_()
    return x + double


def written_view(net: Net, x: Tensor) -> Tensor:
    x = net.conv(x)
    first = x[:, :2]
    x.relu_()
    return x.sum(1) + first.sum(1)


def written_input(net: Net, x: Tensor) -> Tensor:
    return net.conv(x).add_(x.clone().mul_(2).sum())


def through_dropout(net: Net, x: Tensor) -> Tensor:
    x = net.conv(x)
    same = F.dropout(x, 0.5, training=False)  # the same memory
    x.relu_()
    return same + x


def standardized(net: Net, x: Tensor) -> Tensor:
    weight = F.batch_norm(net.conv.weight.reshape(1, 4, -1), None, None, training=True)
    return F.conv2d(x, weight.view_as(net.conv.weight), net.conv.bias, padding=1)


@pytest.mark.parametrize(
    ("body", "traces"),
    [(chain, 0), (standardized, 0), (read_before, 0), (written_view, 1), (written_input, 1), (through_dropout, 1)],
)
def test_computes_what_the_model_computes(
    body: Callable[[Net, Tensor], Tensor], traces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    original = ExportedProgram.run_decompositions

    def run_decompositions(program: ExportedProgram, *tables: object) -> ExportedProgram:
        found.append(program)
        return original(program, *tables)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", run_decompositions)
    model, x = Net(body).eval(), torch.randn(3, 3, 4, 4)
    graph = capture(model, [x[:2]])
    torch.testing.assert_close(graph(x), model(x.clone()), rtol=1e-5, atol=1e-5)
    assert not any(node.target._schema.is_mutable for node in graph.graph.nodes if hasattr(node.target, "_schema"))
    assert not any("dropout" in str(node.target) for node in graph.graph.nodes)
    assert len(found) == traces
