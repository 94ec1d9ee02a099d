from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brecq.checkpoint.packing import pack, packed_size, unpack
from brecq.errors import CheckpointError


def naive_pack(codes: list[int], bits: int) -> list[int]:
    """The bit stream written out as text, least significant bit first."""
    stream = "".join(format(code, f"0{bits}b")[::-1] for code in codes)
    stream += "0" * (-len(stream) % 8)
    return [int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)]


@st.composite
def codes_and_bits(draw: st.DrawFn) -> tuple[list[int], int]:
    bits = draw(st.integers(2, 8))
    return draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=70)), bits


@given(codes_and_bits(), st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]))
@settings(deadline=None)
def test_pack_equals_the_bit_string(case: tuple[list[int], int], dtype: torch.dtype) -> None:
    codes, bits = case
    packed = pack(torch.tensor(codes, dtype=dtype), bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == naive_pack(codes, bits)
    assert packed.numel() == packed_size(len(codes), bits) == math.ceil(len(codes) * bits / 8)


@given(codes_and_bits())
@settings(deadline=None)
def test_unpack_inverts_pack(case: tuple[list[int], int]) -> None:
    codes, bits = case
    assert unpack(pack(torch.tensor(codes, dtype=torch.int64), bits), bits, (len(codes),)).tolist() == codes


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 3, 3, 3), (1000, 77)])
def test_shapes_and_order(bits: int, shape: tuple[int, ...]) -> None:
    codes = torch.randint(0, 1 << bits, shape, dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits, shape), codes)
    if len(shape) == 4:
        assert torch.equal(pack(codes.to(memory_format=torch.channels_last), bits), pack(codes, bits))


def test_eight_codes_fill_bits_bytes() -> None:
    assert pack(torch.tensor([1, 0, 0, 0, 0, 0, 0, 4]), 3).tolist() == [1, 0, 128]


def test_the_packed_tensor_owns_just_its_bytes() -> None:
    packed = pack(torch.ones(3, dtype=torch.int64), 2)
    assert packed.untyped_storage().nbytes() == 1


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (torch.tensor([0, 4]), 2, r"0\.\.4.*2 bits"),
        (torch.tensor([-1, 3]), 2, r"-1\.\.3"),
        (torch.tensor([0.5]), 2, "float32"),
        (torch.tensor([0]), 1, "bits is 1"),
        (torch.tensor([0]), 9, "bits is 9"),
    ],
)
def test_codes_that_do_not_fit(codes: Tensor, bits: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        pack(codes, bits)


@pytest.mark.parametrize(
    ("packed", "bits"),
    [(torch.zeros(3, dtype=torch.uint8), 3), (torch.zeros(2, dtype=torch.int8), 3), (torch.zeros(1, 2).byte(), 3)],
)
def test_packed_bytes_of_the_wrong_size_or_type(packed: Tensor, bits: int) -> None:
    with pytest.raises(CheckpointError, match=r"take uint8 \[2\]"):
        unpack(packed, bits, (5,))
