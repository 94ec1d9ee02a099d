"""Graph clean-up after capture."""

from __future__ import annotations


def test_unused_tensors_are_dropped(captured) -> None:
    graph = captured("ResNet")
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    assert set(graph.state_dict()) == used
    assert not any("running" in name or "num_batches" in name for name in graph.state_dict())
