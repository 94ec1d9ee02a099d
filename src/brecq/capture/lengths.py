"""`len(x)` of a batch while a model is exported: its size as a symbol.

Python wants a number from `len`, so that a program with it is exported for one batch size only. Detectors of
transformers make their queries so: `weight.tile([len(features), 1, 1])`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_OWN = ("torch", "builtins")
"""Packages whose code is written for symbols."""


@contextmanager
def symbolic_lengths(model: nn.Module) -> Iterator[None]:
    """While this lasts, `len` is `x.shape[0]` for tensors in the files that define the model's classes."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__}
    names = {kind.__module__ for kind in classes if kind.__module__.partition(".")[0] not in _OWN}
    spaces = [vars(sys.modules[name]) for name in sorted(names) if name in sys.modules]
    spaces = [space for space in spaces if "len" not in space]
    for space in spaces:
        space["len"] = _length
    try:
        yield
    finally:
        for space in spaces:
            space.pop("len", None)


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else len(value)
