"""The quantized network of a `web` folder in ONNX Runtime, whose kernels onnxruntime-web compiles to WebAssembly."""

from __future__ import annotations

from pathlib import Path

from brecq.deploy.onnx import session


def load(path: Path, threads: int = 1) -> session.Session:
    """`quantized.onnx` of an exported folder; the page and the browser are not run."""
    found = session.load(path / "quantized.onnx", threads)
    found.name, found.timed = f"{found.name} (in place of a browser)", False
    return found
