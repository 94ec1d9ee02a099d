"""What a layer does for one sample: sizes and multiply-accumulates, wherever its tensors hold the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from brecq.graph.ops import kind


def of_one(node: Node) -> tuple[int, ...]:
    """The shape of a node's tensor in a batch of one: its frames, windows or tokens alone where these and the samples
    share a dimension. Other sizes are those of the capture; one that values decide is that of a single sample."""
    return _evaluated(node.meta["val"].shape, _batch(node.graph))


def sample_shape(node: Node) -> tuple[int, ...]:
    """`of_one` without the dimension that holds the samples and nothing else, where there is one."""
    batch, shape = _batch(node.graph), list(node.meta["val"].shape)
    alone = [at for at, size in enumerate(shape) if batch is not None and _expression(size) == batch]
    return _evaluated([size for at, size in enumerate(shape) if at not in alone[:1]], batch)


def macs(node: Node) -> int:
    """Multiply-accumulates of a weighted operator per sample."""
    source: Any = node.args[0]
    weight = node.args[1].meta["val"]  # type: ignore[union-attr]
    moved = str(kind(node)).startswith("conv_transpose")  # each input element meets its whole kernel
    return math.prod(of_one(source if moved else node)) * int(weight[0].numel())


def _batch(graph: Graph) -> Any:
    """The symbol of the batch size; `None` in a graph of fixed sizes."""
    for node in graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        samples: Any = value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else None
        if isinstance(samples, torch.SymInt):
            return _expression(samples)
    return None


def _evaluated(sizes: Sequence[Any], batch: Any) -> tuple[int, ...]:
    return tuple(_size(size, batch) if isinstance(size, torch.SymInt) else int(size) for size in sizes)


def _size(size: torch.SymInt, batch: Any) -> int:
    environment: Any = size.node.shape_env
    return int(environment.optimization_hint(size.node.expr.xreplace({batch: 1}), fallback=1))


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size
