"""Graph clean-up after capture."""

from __future__ import annotations

import pytest


def test_unused_tensors_are_dropped(captured) -> None:
    graph = captured("ResNet")
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    assert set(graph.state_dict()) == used
    assert not any("running" in name or "num_batches" in name for name in graph.state_dict())


@pytest.mark.parametrize("network", ["ResNet", "FPN", "Queries", "Shuffled"])
def test_every_tensor_has_one_node(captured, network: str) -> None:
    """Who reads a weight is asked of its node, so that folding changes nothing else."""
    names = [node.target for node in captured(network).graph.nodes if node.op == "get_attr"]
    assert len(names) == len(set(names))
