"""What learning needs around it, wherever it is called from: gradients, float32, ordinary tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def learning() -> Iterator[None]:
    """Gradients on, inference mode and autocast off, float32 the default: also inside a caller's `torch.no_grad()`."""
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_reproducible())
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


_fill: Any = torch.utils.deterministic  # a module whose attribute is a property

TF32 = False
"""Whether convolutions and matrix products on CUDA may round their float32 inputs to ten bits of mantissa."""


@contextmanager
def _reproducible() -> Iterator[None]:
    """Inside, CUDA gives the same bits every time, in float32; what cannot is warned of. The CPU is left alone."""
    if not torch.cuda.is_available():
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.get_float32_matmul_precision()
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = _fill.fill_uninitialized_memory
    try:
        _set_cuda(False, True, TF32, "high" if TF32 else "highest")
        torch.use_deterministic_algorithms(True, warn_only=True)
        _fill.fill_uninitialized_memory = False
        yield
    finally:
        _set_cuda(*before)
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
        _fill.fill_uninitialized_memory = filled


def _set_cuda(benchmark: bool, deterministic: bool, tf32: bool, matmul: str) -> None:
    cudnn = torch.backends.cudnn
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = benchmark, deterministic, tf32
    torch.set_float32_matmul_precision(matmul)
