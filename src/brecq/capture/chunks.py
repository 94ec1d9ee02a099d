"""Splitting along the batch while a model is exported: two images stacked, and taken apart again.

`torch.chunk` of a batch of 2·N asks how many pieces ⌈2·N / N⌉ are, which the exporter can only answer for one N. Where
the size is a multiple of the number of pieces, the pieces are taken as slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode

_CHUNK = {torch.chunk, Tensor.chunk}
_SPLIT = {torch.split, Tensor.split}


class SymbolicChunks(TorchFunctionMode):
    """While this mode is on, `chunk` and `split` along a symbolic dimension become slices."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _CHUNK or func in _SPLIT:
            x, number, dim, *_ = [*args, *kwargs.values(), 0]
            if "dim" in kwargs:
                dim = kwargs["dim"]
            pieces = _pieces(x, number, dim, func in _CHUNK)
            if pieces is not None:
                return pieces
        return func(*args, **kwargs)


def _pieces(x: Tensor, number: Any, dim: int, is_count: bool) -> tuple[Tensor, ...] | None:
    size: Any = x.shape[dim]
    if not isinstance(size, SymInt) or not isinstance(number, (int, SymInt)):
        return None
    if not statically_known_true(size % number == 0):
        return None
    step = size // number if is_count else number
    count = number if is_count else size // number
    try:
        pieces = int(count) if not isinstance(count, SymInt) else int(count.node.expr)
    except TypeError:  # as many pieces as there are samples
        return None
    return tuple(x.narrow(dim, i * step, step) for i in range(pieces))
