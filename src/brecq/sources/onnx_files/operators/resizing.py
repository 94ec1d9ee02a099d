"""Resizing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brecq.errors import SourceError
from brecq.sources.onnx_files.operators.call import Call, Value, operator


@operator("Resize", "Upsample")
def _resize(call: Call) -> Value:
    x = call.tensor(0)
    axes = [axis % x.dim() for axis in call.get("axes", range(x.dim()))]
    mode, where = _text(call.get("mode", "nearest")), _text(call.get("coordinate_transformation_mode", "half_pixel"))
    if call.kind == "Upsample" or call.opset < 11:
        where = "asymmetric"
    if _text(call.get("keep_aspect_ratio_policy", "stretch")) != "stretch" or call.get("antialias", 0):
        raise SourceError("Resize that keeps the aspect ratio, or smooths before it shrinks, is not supported")
    sizes = _spread(call.numbers(3, "sizes") if call.has(3) else None, axes, list(x.shape))
    scales = None
    if sizes is None:
        first = 2 if call.kind == "Resize" and call.opset >= 11 else 1
        scales = _spread(call.numbers(first, "scales"), axes, [1.0] * x.dim())
        assert scales is not None
        scales = [float(scale) for scale in scales]
    if mode == "nearest":
        rounding = "floor" if call.opset < 11 else _text(call.get("nearest_mode", "round_prefer_floor"))
        return _nearest(x, sizes, scales, where, rounding)
    if mode not in ("linear", "cubic") or x.dim() != 4:
        raise SourceError(f"Resize: {mode} of {x.dim()} dimensions is not supported")
    if mode == "cubic" and (abs(call.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6 or call.get("exclude_outside", 0)):
        raise SourceError("Resize: cubic with other coefficients than PyTorch's is not supported")
    if where not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise SourceError(f"Resize: {mode} with the coordinates {where} is not supported; export with half_pixel")
    name, corners = "bilinear" if mode == "linear" else "bicubic", where == "align_corners"
    if sizes is not None:
        _refuse_single(sizes, where)
        return F.interpolate(x, size=sizes[2:], mode=name, align_corners=corners)
    assert scales is not None
    made = [size * scale for size, scale in zip(x.shape[2:], scales[2:], strict=True)]
    if corners and any(isinstance(size, float) and not size.is_integer() for size in made):
        raise SourceError("Resize: align_corners to a fraction of a pixel is not supported; export with sizes")
    _refuse_single([int(size) if isinstance(size, float) else size for size in made], where)
    return F.interpolate(x, scale_factor=scales[2:], mode=name, align_corners=corners)


def _spread(values: list[Any] | None, axes: Sequence[int], others: list[Any]) -> list[Any] | None:
    """Numbers for some axes as numbers for all; `None` without any."""
    if not values:
        return None
    return [_whole(values[axes.index(d)]) if d in axes else other for d, other in enumerate(others)]


def _refuse_single(sizes: Sequence[Any], where: str) -> None:
    if where == "pytorch_half_pixel" and any(isinstance(size, int) and size == 1 for size in sizes[-2:]):
        raise SourceError("Resize to a single pixel with pytorch_half_pixel is not supported")


def _nearest(x: Tensor, sizes: list[Any] | None, scales: list[float] | None, where: str, rounding: str) -> Tensor:
    """Rows and columns picked as ONNX says; where PyTorch's operator picks the same, it does it."""
    whole = scales is not None and all(float(scale).is_integer() for scale in scales)
    known = all(isinstance(size, int) for size in x.shape[2:]) and (
        sizes is None or all(isinstance(size, int) for size in sizes[2:])
    )
    if not known:
        if not whole:
            raise SourceError("Resize: nearest to sizes that are not fixed is not supported")
        return F.interpolate(x, scale_factor=scales[2:], mode="nearest")  # type: ignore[index]
    picked = []
    for axis in range(2, x.dim()):
        size = x.shape[axis]
        made = sizes[axis] if sizes is not None else math.floor(size * scales[axis])  # type: ignore[index]
        scale = made / size if sizes is not None else scales[axis]  # type: ignore[index]
        picked.append(_indices(size, made, scale, where, rounding))
    plain = [np.floor(np.arange(len(p)) * (n / len(p))).astype(int) for p, n in zip(picked, x.shape[2:], strict=True)]
    if 3 <= x.dim() <= 5 and all(np.array_equal(a, b) for a, b in zip(picked, plain, strict=True)):
        return F.interpolate(x, size=[len(p) for p in picked], mode="nearest")
    for axis, index in enumerate(picked, 2):
        x = x.index_select(axis, torch.from_numpy(index).to(x.device))
    return x


def _indices(size: int, made: int, scale: float, where: str, rounding: str) -> np.ndarray[Any, Any]:
    out = np.arange(made)
    if where in ("half_pixel", "pytorch_half_pixel"):
        at = (out + 0.5) / scale - 0.5 if where == "half_pixel" or made > 1 else np.zeros(made)
    elif where == "asymmetric":
        at = out / scale
    elif where == "align_corners":
        at = out * ((size - 1) / (made - 1)) if made > 1 else np.zeros(made)
    else:
        raise SourceError(f"Resize: nearest with the coordinates {where} is not supported")
    functions: dict[str, Callable[[Any], Any]] = {
        "floor": np.floor, "ceil": np.ceil, "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }  # fmt: skip
    rounded = functions[rounding](at)
    return np.clip(rounded, 0, size - 1).astype(np.int64)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, np.integer) else value
