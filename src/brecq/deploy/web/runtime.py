"""The quantized network of a `web` folder in ONNX Runtime, whose kernels onnxruntime-web compiles to WebAssembly."""

from __future__ import annotations

from pathlib import Path

from brecq.deploy.onnx import session

__all__ = ["load", "load_float"]

load_float = session.load_float


def load(path: Path, threads: int = 1) -> session.Session:
    """`quantized.onnx` of an exported folder; the page and the browser are not run."""
    found = session.load(path / "quantized.onnx", threads)
    found.name = f"{found.name} (in place of a browser)"
    return found
