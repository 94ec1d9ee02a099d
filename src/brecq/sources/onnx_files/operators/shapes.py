"""Operators on shapes: where numbers are, not what they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brecq.errors import SourceError
from brecq.sources.onnx_files.operators.call import Call, Value, as_tensor, operator


@operator("Shape")
def _shape(call: Call) -> Value:
    sizes = list(call.inputs[0].shape)
    return np.array(sizes[call.get("start", 0) : call.get("end", len(sizes))], dtype=object)


@operator("Size")
def _size(call: Call) -> Value:
    return np.array(math.prod(call.inputs[0].shape), dtype=object)


@operator("Reshape")
def _reshape(call: Call) -> Value:
    wanted = call.numbers(1, "shape")
    assert wanted is not None
    x = call.inputs[0]
    if not call.get("allowzero", 0):
        wanted = [x.shape[i] if isinstance(s, (int, np.integer)) and s == 0 else s for i, s in enumerate(wanted)]
    wanted = [int(s) if isinstance(s, np.integer) else s for s in wanted]
    if not isinstance(x, Tensor):
        return x.reshape([int(s) for s in wanted])
    if wanted and call.batch is not None and isinstance(wanted[0], int) and wanted[0] == call.batch:
        wanted = _with_batch(x, wanted)
    return x.reshape(wanted)


def _with_batch(x: Tensor, wanted: list[Any]) -> list[Any]:
    """The file was exported for one batch size, which stands in its shapes: any other takes its place."""
    rest, own = wanted[1:], math.prod(x.shape[1:])
    known = -1 in rest or math.prod(rest) == own
    return [x.shape[0], *rest] if known else wanted


@operator("Flatten")
def _flatten(call: Call) -> Value:
    x = call.tensor(0)
    axis = call.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.dim() > 1 else x[:, None]
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Transpose")
def _transpose(call: Call) -> Value:
    x = call.inputs[0]
    order = list(call.get("perm", range(x.ndim)[::-1]))
    return x.permute(order) if isinstance(x, Tensor) else x.transpose(order)


@operator("Squeeze", "Unsqueeze")
def _squeeze(call: Call) -> Value:
    x, axes = call.inputs[0], call.numbers(1, "axes")
    if call.kind == "Unsqueeze":
        assert axes is not None
        rank = x.ndim + len(axes)
        for axis in sorted(int(a) % rank for a in axes):
            x = x.unsqueeze(axis) if isinstance(x, Tensor) else np.expand_dims(x, axis)
        return x
    if axes is None:
        axes = [i for i, size in enumerate(x.shape) if isinstance(size, int) and size == 1]
    found = tuple(int(axis) % x.ndim for axis in axes)
    return x.squeeze(found) if isinstance(x, Tensor) else np.squeeze(x, found)


@operator("Concat")
def _concat(call: Call) -> Value:
    if not any(isinstance(value, Tensor) for value in call.inputs):
        return np.concatenate(call.inputs, call.get("axis"))
    return torch.cat([call.tensor(i) for i in range(len(call.inputs))], call.get("axis"))


@operator("Split")
def _split(call: Call) -> Value:
    x, axis, sizes = call.inputs[0], call.get("axis", 0), call.numbers(1, "split")
    if sizes is None:
        total, count = int(x.shape[axis]), call.get("num_outputs", call.outputs)
        step = -(-total // count)
        sizes = [min(step, total - i * step) for i in range(count)]
    sizes = [int(size) for size in sizes]
    if isinstance(x, Tensor):
        return tuple(x.split(sizes, axis))
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


@operator("Slice")
def _slice(call: Call) -> Value:
    x = call.inputs[0]
    starts, ends = call.numbers(1, "starts"), call.numbers(2, "ends")
    assert starts is not None
    assert ends is not None
    axes, steps = call.numbers(3, "axes") or list(range(len(starts))), call.numbers(4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis, step = int(axis) % x.ndim, int(step)
        start, end = (_bound(bound) for bound in (start, end))
        if step < 0:
            size = int(x.shape[axis])
            kept = np.arange(size)[slice(start, None if end is None or end < -size else end, step)]
            x = (
                x.index_select(axis, torch.from_numpy(kept.copy()))
                if isinstance(x, Tensor)
                else np.take(x, kept, axis)
            )
            continue
        x = x[(slice(None),) * axis + (slice(start, end, step),)]
    return x


def _bound(value: Any) -> Any:
    if not isinstance(value, (int, np.integer)):
        return value
    return None if value >= 2**31 - 1 else int(value)


@operator("Gather")
def _gather(call: Call) -> Value:
    x, index, axis = call.inputs[0], call.inputs[1], call.get("axis", 0)
    if not isinstance(x, Tensor) and not isinstance(index, Tensor):
        return np.asarray(np.take(x, index.astype(np.int64), axis), dtype=x.dtype)
    x = call.tensor(0)
    axis %= x.dim()
    if not isinstance(index, Tensor) and index.ndim == 0:
        return x.select(axis, int(index))
    index = call.tensor(1).long()
    if isinstance(call.inputs[1], Tensor) and axis == 0:
        return F.embedding(index, x) if x.dim() == 2 else x[index]
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.reshape(-1))
    return found if index.dim() == 1 else found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def _gather_elements(call: Call) -> Value:
    x, axis = call.tensor(0), call.get("axis", 0)
    index = call.tensor(1).long()
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


@operator("GatherND")
def _gather_nd(call: Call) -> Value:
    if call.get("batch_dims", 0):
        raise SourceError("GatherND with batch_dims is not supported")
    return call.tensor(0)[tuple(call.tensor(1).long().unbind(-1))]


@operator("ScatterND")
def _scatter_nd(call: Call) -> Value:
    if call.get("reduction", b"none") not in (b"none", "none"):
        raise SourceError("ScatterND with a reduction is not supported")
    index = tuple(call.tensor(1).long().unbind(-1))
    return call.tensor(0).index_put(index, call.tensor(2))


@operator("ScatterElements")
def _scatter_elements(call: Call) -> Value:
    if call.get("reduction", b"none") not in (b"none", "none"):
        raise SourceError("ScatterElements with a reduction is not supported")
    x, axis, index = call.tensor(0), call.get("axis", 0), call.tensor(1).long()
    return x.scatter(axis, torch.where(index < 0, index + x.shape[axis], index), call.tensor(2))


@operator("Expand")
def _expand(call: Call) -> Value:
    wanted = call.numbers(1, "shape")
    assert wanted is not None
    x = call.inputs[0]
    sizes = [int(s) if isinstance(s, np.integer) else s for s in wanted]
    have = [1] * (len(sizes) - x.ndim) + list(x.shape)
    sizes = [1] * (len(have) - len(sizes)) + sizes
    full = [h if isinstance(s, int) and s == 1 else s for h, s in zip(have, sizes, strict=True)]
    return x.expand(full) if isinstance(x, Tensor) else as_tensor(x).expand(full)


@operator("Tile")
def _tile(call: Call) -> Value:
    counts = [int(count) for count in call.host(1, "counts")]
    return call.tensor(0).repeat(counts) if isinstance(call.inputs[0], Tensor) else np.tile(call.inputs[0], counts)


@operator("Pad")
def _pad(call: Call) -> Value:
    x, pads = call.tensor(0), call.numbers(1, "pads")
    assert pads is not None
    axes = [int(axis) % x.dim() for axis in call.numbers(3, "axes") or range(x.dim())]
    mode = call.get("mode", "constant")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    value = float(call.host(2, "value").reshape(-1)[0]) if call.has(2) else float(call.get("value", 0.0))
    amounts = [[0, 0] for _ in range(x.dim())]
    for i, axis in enumerate(axes):
        amounts[axis] = [int(pads[i]), int(pads[i + len(axes)])]
    if mode == "constant":
        return F.pad(x, [each for pair in reversed(amounts) for each in pair], value=value)
    while amounts and amounts[0] == [0, 0]:  # other modes pad the last dimensions alone
        amounts = amounts[1:]
    names = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}
    return F.pad(x, [each for pair in reversed(amounts) for each in pair], mode=names[mode]) if amounts else x


@operator("ConstantOfShape")
def _constant_of_shape(call: Call) -> Value:
    value = call.get("value")
    value = np.zeros(1, dtype=np.float32) if value is None else np.asarray(value)
    sizes = list(call.host(0, "shape"))
    if all(isinstance(size, (int, np.integer)) for size in sizes):
        return np.full([int(size) for size in sizes], value.reshape(-1)[0])
    return torch.full([int(s) if isinstance(s, np.integer) else s for s in sizes], value.reshape(-1)[0].item(),
                      dtype=torch.as_tensor(value).dtype)  # fmt: skip


@operator("Range")
def _range(call: Call) -> Value:
    start, stop, step = (call.host(i, "bounds").reshape(-1)[0] for i in range(3))
    if all(isinstance(value, (int, float, np.number)) for value in (start, stop, step)):
        return np.arange(start, stop, step)
    return torch.arange(start, stop, step)


@operator("DepthToSpace", "SpaceToDepth")
def _depth_to_space(call: Call) -> Value:
    x, block = call.tensor(0), call.get("blocksize")
    n, c, h, w = x.shape
    mode = call.get("mode", b"DCR")
    if call.kind == "SpaceToDepth":
        if mode in (b"CRD", "CRD") and call.has_attribute("mode"):
            raise SourceError("SpaceToDepth in the mode CRD is not supported")
        x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * block * block, h // block, w // block)
    if mode in (b"CRD", "CRD"):
        return F.pixel_shuffle(x, block)
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


@operator("Trilu")
def _trilu(call: Call) -> Value:
    k = int(call.host(1, "diagonal").reshape(-1)[0]) if call.has(1) else 0
    return (torch.triu if call.get("upper", 1) else torch.tril)(call.tensor(0), k)


@operator("CumSum")
def _cumsum(call: Call) -> Value:
    if call.get("exclusive", 0) or call.get("reverse", 0):
        raise SourceError("CumSum exclusive or in reverse is not supported")
    return call.tensor(0).cumsum(int(call.host(1, "axis").reshape(-1)[0]))
