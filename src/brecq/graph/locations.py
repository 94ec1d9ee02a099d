"""Exports that do not ask where in the source an operator stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.fx.config

_SETTING = "do_not_emit_stack_traces"


@contextmanager
def without_locations() -> Iterator[None]:
    """While this lasts, torch.fx does not look up which line made each operator: brecq keeps none of them, and that
    takes a tenth of the time of an export."""
    before = getattr(torch.fx.config, _SETTING, None)
    if before is None:  # an earlier PyTorch
        yield
        return
    try:
        setattr(torch.fx.config, _SETTING, True)
        yield
    finally:
        setattr(torch.fx.config, _SETTING, before)
