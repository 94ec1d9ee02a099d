"""How integer weights are stored in an ONNX file, and the constant subgraph that unpacks them.

`planes`: bytes that hold 8, 4 or 2 codes of 1, 2 or 4 bits each, split into planes where the width is no power of two
(3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1), unpacked with quotients and remainders: opset 18, any width, its
true size.
`cast`: INT4 or INT2 initializers and a Cast. `native`: INT4 or INT2 initializers that DequantizeLinear reads itself.
`int8`: INT8 initializers that DequantizeLinear reads, a byte a code, for readers that fold no constants.

In all forms but `native` the zero point of each channel is subtracted, in the constant subgraph where there is one:
what arrives at DequantizeLinear is INT8 with zero point 0, whatever the scheme, and runtimes fold all of it when they
load the file.
"""

from __future__ import annotations

from typing import Literal, get_args

import ml_dtypes
import numpy as np
import onnx_ir as ir

from brecq.deploy.onnx.build import Builder
from brecq.deploy.planes import pack_plane, plane_widths

Pack = Literal["planes", "cast", "native", "int8"]
PACKS: tuple[Pack, ...] = get_args(Pack)

_CARRIERS = {
    2: (ir.DataType.INT2, ml_dtypes.int2),
    4: (ir.DataType.INT4, ml_dtypes.int4),
    8: (ir.DataType.INT8, np.dtype(np.int8)),
}

INT2_OPSET = 25
"""The first opset with 2-bit integers."""

_WORD = ir.DataType.INT32
"""Codes are unpacked in INT32, by division and remainder: OpenVINO folds neither shifts and masks nor UINT8, and what
it has not folded it multiplies in float (convolutions), or wrongly (linear layers)."""


def requirements(pack: Pack, widths: set[int]) -> tuple[int, int]:
    """The opset and IR version that weights of these bit-widths need."""
    if pack in ("planes", "int8"):
        return 18, 8
    carried = {carrier_bits(bits) for bits in widths}
    return (INT2_OPSET, 13) if 2 in carried else (21, 10) if 4 in carried else (18, 8)


def carrier_bits(bits: int) -> int:
    """The narrowest integer type of ONNX that holds codes of `bits` bits."""
    return min(width for width in _CARRIERS if width >= bits)


def unpacked(
    build: Builder,
    before: ir.Node,
    name: str,
    codes: np.ndarray,
    zero_point: np.ndarray,
    low: int,
    bits: int,
    pack: Pack,
) -> ir.Value:
    """INT8 values codes - zero_point, from constants stored at `bits` bits.

    Args:
        codes: int8 of any shape, each at least `low`. zero_point: integers that broadcast to it.
    """
    if bits == 8 or pack == "int8":
        return build.constant(name, (codes.astype(np.int64) - zero_point).astype(np.int8))
    if pack == "cast":
        stored = native(build, name, codes, bits)
        if not zero_point.any():
            return stored if stored.dtype == ir.DataType.INT8 else _cast(build, before, stored, ir.DataType.INT8)
        wide, offset = _cast(build, before, stored, ir.DataType.INT32), zero_point
    else:
        wide = _planes(build, before, name, (codes.astype(np.int64) - low).astype(np.uint8), bits)
        offset = zero_point - low
    shift = _cast(build, before, build.constant(f"{name}_offset", offset.astype(np.int8)), ir.DataType.INT32)
    centred = build.node(before, "Sub", [wide, shift], None, ir.DataType.INT32, codes.shape)
    return _cast(build, before, centred, ir.DataType.INT8)


def native(build: Builder, name: str, codes: np.ndarray, bits: int) -> ir.Value:
    """The codes as an initializer of the narrowest type that holds them."""
    dtype, kind = _CARRIERS[carrier_bits(bits)]
    return build.constant(name, codes.astype(kind), dtype)


def _cast(build: Builder, before: ir.Node, value: ir.Value, to: ir.DataType) -> ir.Value:
    return build.node(before, "Cast", [value], None, to, value.shape, {"to": int(to)})


def _planes(build: Builder, before: ir.Node, name: str, codes: np.ndarray, bits: int) -> ir.Value:
    """INT32 values of the codes, stored as planes."""
    total: ir.Value | None = None
    position = 0
    for width in plane_widths(bits):
        plane = (codes.reshape(-1) >> position) & (2**width - 1)
        part = _plane(build, before, f"{name}_bits{position}", plane, width, codes.shape)
        if position:
            by = build.constant("factor", np.array(2**position, np.int32))
            part = build.node(before, "Mul", [part, by], None, _WORD, codes.shape)
        total = part if total is None else build.node(before, "Add", [total, part], None, _WORD, codes.shape)
        position += width
    assert total is not None
    return total


def _plane(
    build: Builder, before: ir.Node, name: str, plane: np.ndarray, width: int, shape: tuple[int, ...]
) -> ir.Value:
    per = 8 // width
    data = pack_plane(plane, width).reshape(-1, 1)
    rows = data.shape[0]
    places = build.constant(f"places{width}", (1 << np.arange(per) * width).astype(np.int32).reshape(1, per))
    values = build.constant("factor", np.array(2**width, np.int32))
    stored = _cast(build, before, build.constant(name, data), _WORD)
    shifted = build.node(before, "Div", [stored, places], None, _WORD, (rows, per))
    value = build.node(before, "Mod", [shifted, values], None, _WORD, (rows, per))
    if rows * per != plane.size:
        flat = build.constant("flat", np.array([-1], np.int64))
        value = build.node(before, "Reshape", [value, flat], None, _WORD, (rows * per,))
        ends = [np.array([number], np.int64) for number in (0, plane.size)]
        bounds = [build.constant(f"at{end[0]}", end) for end in ends]
        value = build.node(before, "Slice", [value, *bounds], None, _WORD, (plane.size,))
    sizes = build.constant(f"{name}_shape", np.array(shape, np.int64))
    return build.node(before, "Reshape", [value, sizes], None, _WORD, shape)
