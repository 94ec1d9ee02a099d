"""Networks of other floating-point types, and what they are given, in float32."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from brecq.errors import CaptureError


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
