"""Reductions, and what is largest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from brecq.errors import SourceError
from brecq.sources.onnx_files.operators.call import Call, Value, operator

_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
    "ReduceL1": lambda x, d, keepdim: x.abs().sum(d, keepdim=keepdim),
    "ReduceL2": lambda x, d, keepdim: x.square().sum(d, keepdim=keepdim).sqrt(),
    "ReduceSumSquare": lambda x, d, keepdim: x.square().sum(d, keepdim=keepdim),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceLogSum": lambda x, d, keepdim: x.sum(d, keepdim=keepdim).log(),
}  # fmt: skip


@operator(*_REDUCTIONS)
def _reduce(call: Call) -> Value:
    x = call.tensor(0)
    axes = call.numbers(1, "axes")
    if not axes:
        if call.get("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.dim()))
    return _REDUCTIONS[call.kind](x, [int(axis) for axis in axes], keepdim=bool(call.get("keepdims", 1)))


@operator("ReduceProd")
def _reduce_prod(call: Call) -> Value:
    x, keep = call.inputs[0], bool(call.get("keepdims", 1))
    axes = call.numbers(1, "axes") or list(range(x.ndim))
    if not isinstance(x, Tensor):
        return np.asarray(np.prod(x, tuple(int(axis) for axis in axes), keepdims=keep))
    for axis in sorted((int(axis) % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


@operator("ArgMax", "ArgMin")
def _arg(call: Call) -> Value:
    if call.get("select_last_index", 0):
        raise SourceError(f"{call.kind} with select_last_index is not supported")
    function = torch.argmax if call.kind == "ArgMax" else torch.argmin
    return function(call.tensor(0), call.get("axis", 0), keepdim=bool(call.get("keepdims", 1)))


@operator("TopK")
def _top_k(call: Call) -> Value:
    k = call.numbers(1, "k")
    count = int(k[0]) if k else int(call.get("k"))
    found = torch.topk(call.tensor(0), count, call.get("axis", -1), bool(call.get("largest", 1)))
    return found.values, found.indices
