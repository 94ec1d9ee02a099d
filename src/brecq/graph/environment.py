"""What learning needs around it, wherever it is called from: gradients, float32, ordinary tensors."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from brecq.errors import CaptureError


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


def in_float32(model: nn.Module) -> tuple[nn.Module, str | None]:
    """The model, or a float32 copy of it where it holds another floating-point type, and a note that says so.

    Tensors made in inference mode take no part in learning either: such a model is copied without a note.

    Raises:
        CaptureError: the model cannot be copied.
    """
    tensors = [*model.parameters(), *model.buffers()]
    foreign = Counter(str(t.dtype).removeprefix("torch.") for t in tensors if _is_foreign(t))
    if not foreign and not any(tensor.is_inference() for tensor in tensors):
        return model, None
    try:
        copied = copy.deepcopy(model).float()
    except Exception as error:  # whatever the model's own modules raise
        names = ", ".join(foreign) or "inference mode"
        raise CaptureError(
            f"the network holds {names} tensors and cannot be copied into float32 ({type(error).__name__}: {error}); "
            "give it in float32: model.float()"
        ) from error
    if not foreign:
        return copied, None
    counts = ", ".join(f"{count} {name}" for name, count in foreign.items())
    return copied, f"the network holds {counts} tensors of {len(tensors)}: a float32 copy of it was quantized"


def in_kind(value: Any) -> Any:
    """An input as such a network takes it: floating-point tensors in float32, none made in inference mode."""
    if not isinstance(value, Tensor):
        return value
    value = value.float() if _is_foreign(value) else value
    return value.clone() if value.is_inference() else value


def _is_foreign(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32
