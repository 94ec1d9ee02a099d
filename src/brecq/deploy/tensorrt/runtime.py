"""Files for TensorRT in ONNX Runtime, which reads the same pairs."""

from __future__ import annotations

from pathlib import Path

from brecq.deploy.onnx import session

__all__ = ["load", "load_float"]

load_float = session.load_float


def load(path: Path, threads: int = 1) -> session.Session:
    """An exported file in ONNX Runtime."""
    found = session.load(path, threads)
    found.name = f"{found.name} (in place of TensorRT)"
    return found
