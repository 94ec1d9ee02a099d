"""What reads a part of a concatenation reads the tensor that the part came from, and shares no grid with the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig
from brecq.capture.export import capture
from brecq.evaluation import sqnr


class Joins(nn.Module):
    """`read(joined)` of three tokens, then five, then eight, joined along axis 1."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(torch.cat([x[:, :3] * 2, x[:, :5] + 1, x], 1))


READS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "first": (lambda y: y[:, :3], True),
    "whole part": (lambda y: y[:, 3:8] + 0, True),
    "inside": (lambda y: y[:, 4:6], True),
    "from the end": (lambda y: y[:, -2:], True),
    "last alone": (lambda y: y[:, -1], True),
    "one": (lambda y: y[:, 5], True),
    "across": (lambda y: y[:, 2:4], False),
    "in steps": (lambda y: y[:, 0:3:2], False),
    "of channels": (lambda y: y[:, :, :2], False),
    "of the batch": (lambda y: y[:2], False),
    "everything": (lambda y: y[:, :] + 0, False),
}


@pytest.mark.parametrize("name", READS)
def test_a_part_is_read_from_where_it_came(name: str) -> None:
    read, alone = READS[name]
    x = torch.randn(4, 8, 6)
    graph = capture(Joins(read).eval(), (x,))
    assert torch.equal(graph(x), Joins(read)(x))
    assert ("cat" in str(graph.code)) is not alone


class ClassAttention(nn.Module):
    """A small class token beside large patches: what reads the token alone does not round it on the patches' grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.out, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.token, self.last = nn.Parameter(torch.randn(1, 1, 6) * 0.01), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.token + 0.01 * x[:, :1], x * 10], 1)
        x = torch.cat([self.norm(x[:, :1]), x[:, 1:]], 1)
        x = x + torch.cat([self.out(x[:, :1]), x[:, 1:]], 1)
        return self.head(self.last(x)[:, 0])


def test_a_class_token_keeps_a_grid_of_its_own() -> None:
    model, x = ClassAttention().eval(), torch.randn(64, 8, 6)
    found = brecq.quantize(model, x, QuantConfig(8, 8, method="rtn")).model(x)
    assert sqnr(float(model(x).square().sum()), float((model(x) - found).square().sum())) > 30
