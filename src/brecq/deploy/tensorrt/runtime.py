"""Files for TensorRT in ONNX Runtime, which reads the same pairs."""

from __future__ import annotations

from pathlib import Path

from brecq.deploy.onnx import session


def load(path: Path, threads: int = 1) -> session.Session:
    """An exported file in ONNX Runtime, in float between its pairs: integer kernels of its own (a softmax with the
    whole part of 1/scale) say nothing of TensorRT."""
    found = session.load(path, threads, {"session.disable_quant_qdq": "1"})
    found.name, found.timed = f"{found.name} (in place of TensorRT)", False
    return found
