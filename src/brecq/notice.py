"""Warnings of brecq: each at the line of the program that called it, not at one of brecq's."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from pathlib import Path

_PASSED = (
    f"{Path(__file__).parent}{os.sep}",
    contextlib.__file__,
)  # of brecq, and of the decorators between its functions


class BrecqWarning(UserWarning):
    """What brecq does, but what whoever called it should know of."""


def warn(message: str) -> None:
    """Warn of `message`, a line."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PASSED):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, BrecqWarning, stacklevel=level)


def without_kernel_preference() -> None:
    """Leave out what PyTorch logs, and nobody can mend, when torchao 0.17 registers its enumeration."""
    logging.getLogger("torch.utils._pytree").addFilter(_is_not_kernel_preference)


def _is_not_kernel_preference(record: logging.LogRecord) -> bool:
    first = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return getattr(first, "__name__", "") != "KernelPreference"
