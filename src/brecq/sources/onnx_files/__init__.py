"""Float networks in ONNX files (`model.onnx`), as PyTorch modules that `torch.export` captures.

The converters there are (onnx2torch, onnx2pytorch, onnx2fx) run such files, but compute shapes with tensors, which
`torch.export` cannot follow; here shapes stay numbers, and layers keep the names of the file.
"""

from __future__ import annotations

from brecq.sources.onnx_files.load import load_onnx

__all__ = ["load_onnx"]
