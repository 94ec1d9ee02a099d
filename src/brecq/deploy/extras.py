"""Optional packages of the deployment formats."""

from __future__ import annotations

import importlib
from types import ModuleType

from brecq.errors import ExportError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, or raise `ExportError` with the extra of brecq that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(f"this needs the package {module} ({error}); pip install 'brecq[{extra}]'") from error
