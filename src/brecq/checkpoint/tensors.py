"""Tensors of a converted program in storage form: weights packed at their bit-width, wider integers, floats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from brecq.checkpoint.packing import pack, packed_size, unpack
from brecq.converted.convert import DEQUANTIZE
from brecq.errors import CheckpointError
from brecq.graph.fold import get_tensor


@dataclass(frozen=True)
class PackedWeight:
    """Integer codes of 2 to 8 bits, densely packed; value = (code - zero_point) * scale.

    Attributes:
        packed: uint8 [ceil(prod(shape) * bits / 8)], the codes minus `low`, see `brecq.checkpoint.packing`.
        bits: width of a code.
        low: the lowest code: -2^(bits - 1), -2^(bits - 1) + 1 for a symmetric range, or 0.
        shape: of the weight.
        scale: float32 [shape[axis]], or [1] for one scale per tensor.
        zero_point: int64 of the shape of `scale`; zeros for a symmetric range.
        axis: the channel axis, or `None` for one scale per tensor.
    """

    packed: Tensor
    bits: int
    low: int
    shape: tuple[int, ...]
    scale: Tensor
    zero_point: Tensor
    axis: int | None

    def codes(self) -> Tensor:
        """Integer codes of `shape`: int8, or uint8 where the range starts at 0."""
        codes = unpack(self.packed, self.bits, self.shape)
        return codes if self.low == 0 else codes.to(torch.int16).add_(self.low).to(torch.int8)

    def dequantize(self) -> Tensor:
        """float32 weight of `shape`, bit for bit what the converted program computes."""
        return _dequantize(self.codes(), self.scale, self.zero_point, self.axis)


@dataclass(frozen=True)
class IntegerTensor:
    """Codes of more than 8 bits, mostly int32 biases; value = (code - zero_point) * scale.

    `codes` has the dtype of the program; `scale`, `zero_point` and `axis` are as in `PackedWeight`.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None

    def dequantize(self) -> Tensor:
        """float32 tensor of the shape of `codes`, bit for bit what the converted program computes."""
        return _dequantize(self.codes, self.scale, self.zero_point, self.axis)


Stored = PackedWeight | IntegerTensor | Tensor


def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    shape = [1] * codes.dim()
    if axis is not None:
        shape[axis] = -1
    return (codes - zero_point.view(shape)) * scale.view(shape)


def collect_tensors(converted: GraphModule) -> dict[str, Stored]:
    """Every constant that a converted graph reads, by its name in the program.

    Integer constants that feed a dequantize operator take their range and scales from it; scales and zero points
    belong to them and are not listed. All other constants are listed as they are.

    Raises:
        CheckpointError: one integer constant is dequantized with two different ranges or scales.
    """
    inverse = set(DEQUANTIZE.values())
    stored: dict[str, Stored] = {}
    grids: dict[str, tuple[Any, ...]] = {}
    qparams: set[str] = set()
    for node in converted.graph.nodes:
        if node.target not in inverse or node.args[0].op != "get_attr":
            continue
        name = str(node.args[0].target)
        grid = tuple(str(value.target) if isinstance(value, Node) else value for value in node.args[1:])
        if grids.setdefault(name, grid) != grid:
            raise CheckpointError(f"{name} is dequantized with two different scales; give each its own constant")
        qparams.update(str(value.target) for value in node.args[1:3] if isinstance(value, Node))
        if name not in stored:
            stored[name] = _integers(converted, node.args)
    for node in converted.graph.nodes:
        if node.op == "get_attr" and str(node.target) not in stored.keys() | qparams:
            value = get_tensor(converted, str(node.target))
            if isinstance(value, Tensor):
                stored[str(node.target)] = value.detach().cpu()
    return stored


def _integers(converted: GraphModule, arguments: tuple[Any, ...]) -> PackedWeight | IntegerTensor:
    """Read the arguments of a dequantize node: codes, scale, zero point, (axis,) low, high, dtype."""
    source, scale, zero_point, *axes, low, high, _ = arguments
    codes = get_tensor(converted, str(source.target)).detach().cpu()
    axis = axes[0] % codes.dim() if axes else None
    if axis is None:
        scale, zero_point = torch.tensor([scale]), torch.tensor([zero_point])
    else:
        scale, zero_point = (get_tensor(converted, str(a.target)).detach().cpu() for a in (scale, zero_point))
    scale, zero_point = scale.to(torch.float32), zero_point.to(torch.int64)
    bits = max(2, (high - low).bit_length())
    if bits > 8:
        return IntegerTensor(codes, scale, zero_point, axis)
    packed = pack(codes.to(torch.int16) - low, bits)
    return PackedWeight(packed, bits, low, tuple(codes.shape), scale, zero_point, axis)


def encode(tensors: Mapping[str, Stored]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors by key, ready for safetensors, and the table that describes them (docs/format.md)."""
    arrays: dict[str, Tensor] = {}
    table: dict[str, dict[str, Any]] = {}

    def add(key: str, value: Tensor) -> str:
        if key in arrays:
            raise CheckpointError(f"two tensors would be stored under {key!r}; rename one of them in the model")
        # A tensor of its own memory: safetensors refuses shared storage, and views would save all of it.
        arrays[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return key

    for name, value in tensors.items():
        if isinstance(value, Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            table[name] = {"kind": "plain", "shape": list(value.shape), "dtype": dtype, "data": add(name, value)}
            continue
        entry: dict[str, Any]
        if isinstance(value, PackedWeight):
            entry = {"kind": "packed", "shape": list(value.shape), "bits": value.bits, "low": value.low}
            entry["codes"] = add(f"{name}.codes", value.packed)
        else:
            entry = {"kind": "integer", "shape": list(value.codes.shape), "codes": add(f"{name}.codes", value.codes)}
        entry |= {"axis": value.axis, "scale": add(f"{name}.scale", value.scale)}
        entry |= {"zero_point": None, "zero_point_bits": None}
        if value.zero_point.any():
            zero_points, bits = _encode_zero_points(value)
            entry |= {"zero_point": add(f"{name}.zero_point", zero_points), "zero_point_bits": bits}
        table[name] = entry
    return arrays, table


def stored_bytes(tensors: Mapping[str, Stored]) -> int:
    """Bytes of all tensors as `encode` lays them out, without the file's header."""
    arrays, _ = encode(tensors)
    return sum(value.numel() * value.element_size() for value in arrays.values())


def _encode_zero_points(value: PackedWeight | IntegerTensor) -> tuple[Tensor, int | None]:
    """Zero points packed like the codes where they lie in the range of the codes, as is usual; else int64."""
    if isinstance(value, PackedWeight):
        offset = value.zero_point - value.low
        if int(offset.min()) >= 0 and int(offset.max()) < 1 << value.bits:
            return pack(offset, value.bits), value.bits
    return value.zero_point, None


def decode(arrays: Mapping[str, Tensor], table: Mapping[str, Mapping[str, Any]]) -> dict[str, Stored]:
    """The inverse of `encode`.

    Raises:
        CheckpointError: the table names a tensor that is missing, or whose size does not fit its description.
    """
    tensors: dict[str, Stored] = {}
    for name, entry in table.items():
        try:
            _check_entry(entry)
            tensors[name] = _decode(arrays, entry)
        except KeyError as error:
            raise CheckpointError(f"{name}: {error.args[0]!r} is missing; write the result again") from error
        except (CheckpointError, ArithmeticError, RuntimeError) as error:  # numbers that make no tensor
            raise CheckpointError(f"{name}: {error}; write the result again") from error
    return tensors


_COUNT: tuple[type, ...] = (int,)
_TEXT: tuple[type, ...] = (str,)
_FIELDS: dict[str, tuple[type, ...]] = {
    "kind": _TEXT, "data": _TEXT, "codes": _TEXT, "scale": _TEXT, "zero_point": (str, type(None)),
    "zero_point_bits": (int, type(None)), "axis": (int, type(None)), "bits": _COUNT, "low": _COUNT,
}  # fmt: skip


def _check_entry(entry: Any) -> None:
    """Raise `CheckpointError` for a description with a field of another type than `encode` writes."""
    if not isinstance(entry, dict):
        raise CheckpointError(f"its description is {str(entry)[:80]!r}, not an object")
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 1 << 40 for size in shape):
        raise CheckpointError(f"shape is {str(shape)[:80]!r}, not a list of sizes")
    for field, types in _FIELDS.items():
        if field in entry and type(entry[field]) not in types:
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
            raise CheckpointError(f"{field} is {str(entry[field])[:80]!r}, not {names}")


def _decode(arrays: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Stored:
    kind, shape = entry["kind"], tuple(entry["shape"])
    if kind == "plain":
        return arrays[entry["data"]]
    if kind not in ("packed", "integer"):
        raise CheckpointError(f"unknown kind {kind!r}")
    codes, scale, axis = arrays[entry["codes"]], arrays[entry["scale"]], entry["axis"]
    zero_point = torch.zeros(scale.shape, dtype=torch.int64)
    if entry["zero_point"] is not None:
        zero_point = arrays[entry["zero_point"]]
        if entry["zero_point_bits"] is not None:
            zero_point = unpack(zero_point, entry["zero_point_bits"], scale.shape).to(torch.int64) + entry["low"]
    if kind == "integer":
        return IntegerTensor(codes, scale, zero_point, axis)
    if codes.numel() != packed_size(torch.Size(shape).numel(), entry["bits"]):
        raise CheckpointError(f"{codes.numel()} bytes of codes do not hold {entry['bits']} bits of shape {shape}")
    return PackedWeight(codes, entry["bits"], entry["low"], shape, scale, zero_point, axis)
