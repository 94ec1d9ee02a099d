"""AIMET's encodings of version 1.0.0: which tensors are quantized, on which grids.

    {"version": "1.0.0", "activation_encodings": [E, ...], "param_encodings": [E, ...], "quantizer_args": {...}}
    E = {"name", "enc_type": PER_TENSOR or PER_CHANNEL, "dtype": INT, "bw": bits, "is_sym", "scale": [s, ...],
         "offset": [o, ...]}

A value is (u + offset) · scale for codes u = 0 .. 2^bw - 1. AIMET's exporter writes this form
(`QcQuantizeOp._export_1_0_0_encodings`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brecq.errors import ExportError
from brecq.plain import build
from brecq.reading import read_json

VERSION = "1.0.0"


@dataclass(frozen=True)
class Encoding:
    """The grid of one tensor; the fields are AIMET's."""

    name: str
    enc_type: str
    dtype: str
    bw: int
    is_sym: bool
    scale: tuple[float, ...]
    offset: tuple[int, ...]

    def __post_init__(self) -> None:
        whole = self.enc_type == "PER_TENSOR"
        if self.enc_type not in ("PER_TENSOR", "PER_CHANNEL") or self.dtype != "INT" or not 1 <= self.bw <= 32:
            raise ExportError(
                f"the encoding of {self.name!r} is {self.enc_type} {self.dtype} {self.bw}; not supported"
            )
        if len(self.scale) != len(self.offset) or not self.scale or (whole and len(self.scale) != 1):
            raise ExportError(
                f"the encoding of {self.name!r} has {len(self.scale)} scales, {len(self.offset)} offsets"
            )
        if not all(scale > 0 for scale in self.scale):
            raise ExportError(f"the encoding of {self.name!r} has a scale that is not positive")
        if self.is_sym and set(self.offset) != {-(2 ** (self.bw - 1))}:
            raise ExportError(f"the encoding of {self.name!r} is symmetric, but its offsets are not the middle")

    def codes(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Codes u of values, int64; the channels of the encoding are along `axis`."""
        scale, offset = self._spread(values.ndim, axis)
        return np.clip(np.rint(values / scale) - offset, 0, 2**self.bw - 1).astype(np.int64)

    def values(self, codes: np.ndarray, axis: int) -> np.ndarray:
        """Float32 values of codes."""
        scale, offset = self._spread(codes.ndim, axis)
        return ((codes + offset).astype(np.float32) * scale).astype(np.float32)

    def _spread(self, ndim: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
        shape = [1] * ndim
        if len(self.scale) > 1:
            shape[axis] = -1
        return np.array(self.scale, np.float32).reshape(shape), np.array(self.offset, np.int64).reshape(shape)


@dataclass(frozen=True)
class Encodings:
    """A whole file."""

    activation_encodings: tuple[Encoding, ...]
    param_encodings: tuple[Encoding, ...]
    version: str = VERSION
    quantizer_args: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ExportError(f"the encodings are of version {self.version!r}; only {VERSION} is read")
        names = [each.name for each in (*self.activation_encodings, *self.param_encodings)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ExportError(f"{twice[0]!r} has two encodings")

    def text(self) -> str:
        """As a JSON file."""
        parts: dict[str, Any] = {"version": self.version}
        for key in ("activation_encodings", "param_encodings"):
            parts[key] = [_plain(each) for each in getattr(self, key)]
        return json.dumps({**parts, "quantizer_args": dict(self.quantizer_args or {})}, indent=1)


def encoding(name: str, bits: int, low: int, scale: Sequence[float], zero_point: Sequence[int]) -> Encoding:
    """The encoding of codes low .. low + 2^bits - 1, each (code - zero_point) · scale, of one channel or several."""
    offset = tuple(low - int(zero) for zero in zero_point)
    middle = set(offset) == {-(2 ** (bits - 1))}
    kind = "PER_TENSOR" if len(scale) == 1 else "PER_CHANNEL"
    return Encoding(name, kind, "INT", bits, middle, tuple(map(float, scale)), offset)


def read(path: Path) -> Encodings:
    """The encodings in a file.

    Raises:
        ExportError: it is none, or says what brecq does not write.
    """
    try:
        return build(Encodings, read_json(path, ExportError, "file of encodings"), str(path))
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{path} is no file of encodings of version {VERSION}: {error}") from error


def _plain(each: Encoding) -> dict[str, Any]:
    return {**vars(each), "scale": list(each.scale), "offset": list(each.offset)}
