"""Which layers are the first and the last."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from brecq.capture.export import capture
from brecq.graph.dataflow import layer_names
from brecq.graph.ends import first_layers, last_layers


class Stream(nn.Module):
    """Six residual blocks without a head, their norms in front or behind."""

    def __init__(self, behind: bool = False) -> None:
        super().__init__()
        self.behind = behind
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(8), "up": nn.Linear(8, 8), "down": nn.Linear(8, 8)}) for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            y = block["down"](block["up"](x if self.behind else block["norm"](x)).relu())
            x = block["norm"](x + y) if self.behind else x + y
        return x


class Dense(nn.Module):
    """Each layer reads all before it and is read by all after it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 * (i + 1), 4) for i in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], -1)
        return x


class Language(nn.Module):
    """Three projections read the embedding; a float mask reaches the last layer past all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        scores = self.q(x) @ self.k(x).transpose(1, 2) + mask[:, None, :]
        return x + self.out(scores.softmax(-1) @ self.v(x))


class Heads(nn.Module):
    """Two heads side by side in one output, and features in another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.box, self.score = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(self.stem(x).relu())
        return torch.cat([self.box(features), self.score(features).sigmoid()], -1), features


class Shortcut(nn.Module):
    """The last block's shortcut has a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.short = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (self.b(self.a(x).relu()) + self.short(x)).relu()


class Distribution(nn.Module):
    """A box's sides as means of distributions, as YOLO decodes them; class scores beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.sides, self.classes = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1), nn.Conv2d(8, 5, 1)
        self.mean = nn.Conv2d(4, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        found = self.sides(x).flatten(2).unflatten(1, (4, 4)).transpose(1, 2).softmax(1)
        return torch.cat([self.mean(found)[:, 0], self.classes(x).flatten(2).sigmoid()], 1)


FLOATS = torch.randn(2, 3, 8)


@pytest.mark.parametrize(
    ("network", "inputs", "first", "last"),
    [
        (Stream, (FLOATS,), {"blocks.0.up"}, {"blocks.5.down"}),
        (lambda: Stream(behind=True), (FLOATS,), {"blocks.0.up"}, {"blocks.5.down"}),
        (Dense, (FLOATS[..., :4],), {"layers.0"}, {"layers.3"}),
        (Language, (torch.randint(9, (2, 3)), torch.randn(2, 3)), {"q", "k", "v"}, {"out"}),
        (Heads, (FLOATS,), {"stem"}, {"box", "score", "body"}),
        (Shortcut, (FLOATS,), {"stem"}, {"b"}),
        (Distribution, (torch.randn(2, 3, 6, 6),), {"stem"}, {"sides", "classes", "mean"}),
    ],
    ids=["pre-norm", "post-norm", "dense", "language", "heads", "shortcut", "distribution"],
)
def test_first_and_last(
    network: Callable[[], nn.Module], inputs: tuple[Tensor, ...], first: set[str], last: set[str]
) -> None:
    graph = capture(network().eval(), inputs)
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    layers = {node: name for node, name in zip(nodes, layer_names(nodes), strict=True) if name}
    assert {layers[node] for node in first_layers(graph, layers)} == first
    assert {layers[node] for node in last_layers(graph, layers)} == last
