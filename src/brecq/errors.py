"""Every error brecq raises on purpose. Each message names the value received and the fix."""

from __future__ import annotations


class BrecqError(Exception):
    """Base class: catch this to catch everything that brecq raises on purpose."""


class ConfigError(BrecqError, ValueError):
    """A setting is invalid, or two settings contradict each other."""


class SourceError(BrecqError):
    """A model could not be found, built or given its weights."""


class DataError(BrecqError, ValueError):
    """Calibration or evaluation data is empty, unreadable or of the wrong shape or range."""


class CaptureError(BrecqError):
    """`torch.export` could not capture the model."""


class PartitionError(BrecqError, ValueError):
    """Named blocks do not fit the network's graph."""


class CheckpointError(BrecqError):
    """A saved result or an interrupted run cannot be read or does not match."""


class ExportError(BrecqError):
    """A format cannot express the network, or a package that it needs is missing."""


class BudgetError(BrecqError, ValueError):
    """No allocation of bits fits into the budget."""


class HardwareError(BrecqError, ValueError):
    """A hardware model cannot be read, or says nothing about a layer."""


def first_line(error: BaseException | None) -> str:
    """What an error of another library says, without what follows its first line; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()
