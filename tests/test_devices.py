"""Networks on devices; the device `meta` stands in for another one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from brecq import devices
from brecq.capture.export import capture
from brecq.devices import device_of, move, on_cpu, on_device

META = torch.device("meta")


class Made(nn.Module):
    """Makes tensors of its own, whose sizes depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.zeros(x.shape[0], 1, 4, device=x.device)
        return self.fc(torch.cat([first, x + torch.arange(4.0, device=x.device)], 1))


def test_what_a_graph_makes_moves_with_it() -> None:
    graph = capture(Made(), (torch.randn(2, 5, 4),))
    assert any(isinstance(node.kwargs.get("device"), torch.device) for node in graph.graph.nodes)
    move(graph, META)
    assert device_of(graph) == META
    assert graph(torch.randn(3, 5, 4, device=META)).device == META


def test_a_network_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, there = nn.Linear(2, 2), nn.Linear(2, 2).to(META)
    moves: list[tuple[nn.Module, torch.device]] = []
    monkeypatch.setattr(devices, "move", lambda *move: moves.append(move))
    with on_device(META, model, there):
        assert moves == [(model, META)]
    assert moves == [(model, META), (model, torch.device("cpu"))]


def test_a_network_on_the_cpu_is_not_copied() -> None:
    model = nn.Linear(2, 2)
    assert on_cpu(model) is model
