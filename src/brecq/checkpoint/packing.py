"""Dense packing of small integers: b bits a code, little-endian, across byte borders.

Code i occupies the bits i·b to (i + 1)·b - 1 of the stream, least significant bit first; bit k of the stream is
bit k mod 8 of byte k // 8. Eight codes fill exactly b bytes, and the last byte is padded with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from brecq.errors import CheckpointError


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes of any integer dtype and shape, each in 0..2^bits - 1, in row-major order.

    Returns: uint8 [ceil(codes.numel() * bits / 8)], on the device of `codes`.

    Raises:
        CheckpointError: `bits` is not 2 to 8, or a code does not fit.
    """
    _check_bits(bits)
    flat = codes.reshape(-1)
    if flat.dtype.is_floating_point or flat.dtype.is_complex:
        raise CheckpointError(f"codes have dtype {flat.dtype}; pack integers")
    count = flat.numel()
    if count == 0:
        return torch.empty(0, dtype=torch.uint8, device=codes.device)
    low, high = (int(value) for value in torch.aminmax(flat))
    if low < 0 or high >= 1 << bits:
        raise CheckpointError(
            f"codes lie in {low}..{high}, which {bits} bits cannot hold; subtract the lowest code, or use more bits"
        )
    # One int64 word holds eight codes; only words and one eighth of the codes are ever widened at a time.
    words = torch.zeros(-(-count // 8), dtype=torch.int64, device=codes.device)
    for i in range(8):
        part = flat[i::8]
        words[: part.numel()] |= part.to(torch.int64) << (i * bits)
    packed = torch.empty(words.numel(), bits, dtype=torch.uint8, device=codes.device)
    for j in range(bits):
        packed[:, j] = (words >> (8 * j)) & 0xFF
    size = packed_size(count, bits)
    flat_bytes = packed.reshape(-1)
    return flat_bytes if flat_bytes.numel() == size else flat_bytes[:size].clone()


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack`: uint8 codes of `shape` from uint8 [ceil(prod(shape) * bits / 8)].

    Raises:
        CheckpointError: `bits` is not 2 to 8, or `packed` has the wrong dtype or size for `shape`.
    """
    _check_bits(bits)
    count = math.prod(shape)
    size = packed_size(count, bits)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != size:
        raise CheckpointError(
            f"packed codes are {packed.dtype} {list(packed.shape)}; "
            f"{bits} bits of shape {list(shape)} take uint8 [{size}]"
        )
    groups = -(-count // 8)
    if packed.numel() != groups * bits:
        packed = torch.nn.functional.pad(packed, (0, groups * bits - packed.numel()))
    columns = packed.view(groups, bits)
    words = torch.zeros(groups, dtype=torch.int64, device=packed.device)
    for j in range(bits):
        words |= columns[:, j].to(torch.int64) << (8 * j)
    codes = torch.empty(count, dtype=torch.uint8, device=packed.device)
    for i in range(8):
        part = codes[i::8]
        part.copy_((words[: part.numel()] >> (i * bits)) & ((1 << bits) - 1))
    return codes.view(tuple(shape))


def _check_bits(bits: int) -> None:
    if bits not in range(2, 9):
        raise CheckpointError(f"bits is {bits!r}; packing takes 2 to 8")
