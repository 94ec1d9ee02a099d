"""Exports that fail say why in their error, and nothing else: torch prints the whole program beside it, and warns."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch.export")


@contextmanager
def silent_export() -> Iterator[None]:
    """While this lasts, nothing that torch prints, logs or warns of an export is seen; errors are raised as always."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
