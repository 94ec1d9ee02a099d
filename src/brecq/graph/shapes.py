"""Dynamic shapes for `torch.export`: dimension 0 of every input is the batch. How large tensors of such shapes are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import SymInt, Tensor, nn
from torch.fx import Graph
from torch.utils import _pytree as pytree

from brecq.forward import Inputs

MAX_BATCH = 65_535
"""As many as cuDNN normalizes at once: on a CUDA device, PyTorch's batch norm asks whether a batch is larger."""


def batch_dim(low: int = 1) -> Any:
    """The dynamic batch dimension."""
    return torch.export.Dim("batch", min=low, max=MAX_BATCH)


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as positional and keyword arguments."""
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})


def dynamic_shapes(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dim: Any, *, any_size: bool = False
) -> dict[str, Any]:
    """The `dynamic_shapes` argument of `torch.export` that makes dimension 0 of every tensor dynamic; with `any_size`
    height and width of [N, C, H, W] as well, where the model allows it.

    It follows the signature of `forward`: what `*args` and `**kwargs` gather is nested.
    """

    def dims(value: Any) -> dict[int, Any] | None:
        if not isinstance(value, Tensor) or not value.dim():
            return None
        free = (2, 3) if any_size and value.dim() == 4 else ()
        return {0: dim, **dict.fromkeys(free, torch.export.Dim.AUTO)}

    bound = signature(model.forward).bind(*args, **kwargs).arguments
    return pytree.tree_map(dims, dict(bound))


@contextmanager
def one_batch(model: nn.Module) -> Iterator[None]:
    """While this lasts, `model` is exported with one batch size for all inputs, not with sizes found to be equal."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sizes = [value.shape[0] for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
        for size in sizes[1:]:
            torch._check(size == sizes[0])

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def captured_samples(graph: Graph) -> int:
    """How many samples a graph was captured with."""
    values = (node.meta.get("val") for node in graph.nodes if node.op == "placeholder")
    sizes: Iterator[Any] = (value.shape[0] for value in values if isinstance(value, Tensor) and value.dim())
    return next((_captured(size) for size in sizes if isinstance(size, SymInt)), 1)


def numel_of_sample(value: Tensor, samples: int) -> int:
    """How many numbers a tensor of a graph that was captured with `samples` holds for each of them, at the heights and
    widths of then; 0 for a constant, none of whose extents varies. An extent that values decide, such as how many pass
    a threshold, counts as one that all samples pass."""
    extents: list[Any] = list(value.shape)
    varies = any(isinstance(extent, SymInt) for extent in extents)
    return prod(_captured(extent) or samples for extent in extents) // samples if varies else 0


def _captured(extent: Any) -> int:
    """What an extent was when the graph was captured; 0 for one that values decide."""
    size: Any = extent.node.hint if isinstance(extent, SymInt) else extent
    return 0 if size is None else int(size)
