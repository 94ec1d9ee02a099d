"""Operators that compute on codes."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from brecq.graph import ops
from brecq.graph.integer import operator_of

aten = ops.aten


def chain(blocks: int) -> tuple[Graph, Node]:
    """Residual blocks without anything between them, and the last addition."""
    graph = Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    for _ in range(blocks):
        layer = graph.call_function(aten.conv2d.default, (x, weight))
        x = graph.call_function(aten.add.Tensor, (x, graph.call_function(aten.relu.default, (layer,))))
    return graph, x


def test_an_addition_is_known_in_a_network_of_any_depth() -> None:
    assert operator_of(chain(2000)[1]) == "add"


def test_what_is_computed_from_constants_alone_joins_nothing() -> None:
    graph, x = chain(1)
    scaled = graph.call_function(aten.mul.Tensor, (graph.get_attr("scale"), graph.get_attr("other")))
    table = graph.call_function(aten.relu.default, (scaled,))
    assert operator_of(graph.call_function(aten.add.Tensor, (x, table))) is None
    assert operator_of(graph.call_function(aten.add.Tensor, (x, graph.placeholder("y")))) == "add"
    assert operator_of(graph.call_function(aten.add.Tensor, (x, torch.ones(())))) is None
