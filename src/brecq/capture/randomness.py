"""Networks that answer the same inputs differently cannot be compared with anything: they are refused."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from brecq.errors import CaptureError
from brecq.graph import ops

_RANDOM_UNLESS = {"dropout": 2, "native_dropout": 2, "alpha_dropout": 2, "feature_dropout": 2, "rrelu": 3}
"""Operators that are random only if the argument at this position says that the network is training."""


def check_deterministic(captured: GraphModule) -> None:
    """Refuse a graph whose outputs depend on random numbers.

    Raises:
        CaptureError: names the operator and its layer.
    """
    live = set()
    for node in reversed(captured.graph.nodes):
        if node.op == "output" or node in live:
            live.update(node.all_input_nodes)
            if _is_random(node):
                raise CaptureError(not_deterministic(ops.op_name(node), ops.module_path(node)))


def _is_random(node: Node) -> bool:
    tags = getattr(node.target, "tags", ())
    if node.op != "call_function" or torch.Tag.nondeterministic_seeded not in tags:
        return False
    name = ops.op_name(node)
    if "attention" in name:
        arguments = node.target._schema.arguments  # type: ignore[union-attr]
        given = {a.name: value for a, value in zip(arguments, node.args, strict=False)} | dict(node.kwargs)
        return bool(given.get("dropout_p"))
    if name in _RANDOM_UNLESS:
        position = _RANDOM_UNLESS[name]
        return len(node.args) > position and bool(node.args[position])
    return name not in ("lstm", "gru", "rnn_tanh", "rnn_relu")


def not_deterministic(operator: str, path: str) -> str:
    """The message. `operator`: empty if only the outputs tell. `path`: of the module, if it is known."""
    where = f" in {path!r}" if path else ""
    cause = f"the random operator {operator}" if operator else "something random, or state that it keeps"
    return (
        f"the network gives two different outputs for the same inputs: its forward holds {cause}{where} in eval mode; "
        "make it depend on self.training (as F.dropout(x, training=self.training) does), give random numbers as "
        "inputs, or quantize a submodule without it"
    )
