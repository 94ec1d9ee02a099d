from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers quantized_decomposed)

from brecq.errors import ConfigError
from brecq.quant.affine import IntRange, dequantize, fake_quantize, per_channel, quantize

decomposed = torch.ops.quantized_decomposed
seeds = st.integers(0, 2**31)
ranges = st.one_of(
    st.builds(IntRange.activations, st.sampled_from([*range(2, 9), 16])),
    st.builds(IntRange.weights, st.integers(2, 8), st.booleans()),
)


def dtype_of(range: IntRange) -> torch.dtype:
    return torch.int16 if range.bits > 8 else torch.int8 if range.low < 0 else torch.uint8


def values_around_ties(generator: torch.Generator, scale: torch.Tensor, *shape: int) -> torch.Tensor:
    """Values on, exactly between, and next to grid points, and others; many outside any range."""
    largest = torch.where(torch.rand(shape, generator=generator) < 0.2, 1 << 17, 600)
    codes = torch.floor((torch.rand(shape, generator=generator) * 2 - 1) * largest) / 2
    noise = torch.randn(shape, generator=generator) * torch.randint(0, 2, shape, generator=generator)
    return (codes + noise) * scale


@given(seeds, ranges, st.floats(2.0**-23, 1e4, width=32), st.data())
def test_per_tensor_arithmetic_is_that_of_pt2e(seed: int, range: IntRange, step: float, data: st.DataObject) -> None:
    zero_point = data.draw(st.integers(range.low, range.high))
    scale, zero = torch.tensor(step), torch.tensor(float(zero_point))
    x = values_around_ties(torch.Generator().manual_seed(seed), scale, 200)
    arguments = (scale.item(), zero_point, range.low, range.high, dtype_of(range))
    expected = decomposed.quantize_per_tensor(x, *arguments)
    codes = quantize(x, scale, zero, range)
    assert codes.dtype == torch.float32
    assert torch.equal(codes.to(expected.dtype), expected)
    assert torch.equal(dequantize(codes, scale, zero), decomposed.dequantize_per_tensor(expected, *arguments))


@given(seeds, ranges, st.integers(0, 3))
def test_per_channel_arithmetic_is_that_of_pt2e(seed: int, range: IntRange, axis: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (5, 4, 3, 2)
    scale = torch.exp(torch.randn(shape[axis], generator=generator) * 4).clamp(min=2.0**-23)
    zero = torch.randint(range.low, range.high + 1, (shape[axis],), generator=generator)
    scales, zeros = per_channel(scale, 4, axis), per_channel(zero, 4, axis)
    x = values_around_ties(generator, scales, *shape)
    arguments = (scale, zero, axis, range.low, range.high, dtype_of(range))
    expected = decomposed.quantize_per_channel(x, *arguments)
    assert torch.equal(quantize(x, scales, zeros.float(), range).to(expected.dtype), expected)
    assert torch.equal(
        fake_quantize(x, scales, zeros.float(), range), decomposed.dequantize_per_channel(expected, *arguments)
    )


@given(seeds, ranges)
def test_zero_and_every_code_survive(seed: int, range: IntRange) -> None:
    scale = torch.rand((), generator=torch.Generator().manual_seed(seed)) + 0.1
    zero = torch.tensor(float((seed % range.levels) + range.low))
    codes = torch.arange(range.low, range.high + 1).float()
    assert torch.equal(quantize(dequantize(codes, scale, zero), scale, zero, range), codes)
    assert fake_quantize(torch.zeros(1), scale, zero, range).item() == 0


def test_integer_ranges() -> None:
    assert IntRange.weights(8, symmetric=True) == IntRange(-127, 127)
    assert IntRange.weights(8, symmetric=False) == IntRange(-128, 127)
    assert IntRange.weights(2, symmetric=True) == IntRange.weights(2, symmetric=False) == IntRange(-2, 1)
    assert IntRange.activations(4) == IntRange(0, 15)
    for bits in range(2, 9):
        assert IntRange.activations(bits).levels == 2**bits
        assert IntRange.activations(bits).bits == bits
        assert IntRange.weights(bits, symmetric=True).bits == IntRange.weights(bits, symmetric=False).bits == bits


def test_an_empty_integer_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"3\.\.3"):
        IntRange(3, 3)


def test_bfloat16_is_quantized_as_its_float32_value() -> None:
    x = torch.randn(100).bfloat16()
    scale, zero, range = torch.tensor(0.07), torch.tensor(5.0), IntRange.activations(4)
    assert torch.equal(quantize(x, scale, zero, range), quantize(x.float(), scale, zero, range))


def test_per_channel_leaves_per_tensor_values_alone() -> None:
    assert per_channel(torch.tensor(1.0), 4, 0).shape == ()
    assert per_channel(torch.ones(1), 4, 0).shape == (1, 1, 1, 1)
    assert per_channel(torch.ones(3), 4, 1).shape == (1, 3, 1, 1)


@given(seeds, st.integers(-32768, 32767), st.floats(2.0**-20, 10, width=32))
def test_sixteen_bits_are_the_nearest_of_65536_values(seed: int, zero_point: int, step: float) -> None:
    range = IntRange.activations(16)
    assert (range.low, range.high, range.levels, range.bits, range.carrier) == (-32768, 32767, 65536, 16, torch.int16)
    x = torch.randn(300, generator=torch.Generator().manual_seed(seed)) * step * 20_000
    scale, zero = torch.tensor(step), torch.tensor(float(zero_point))
    found = quantize(x, scale, zero, range).double()
    exact = (x.double() / scale.double() + zero_point).clamp(range.low, range.high)
    assert bool(((found - exact).abs() <= 0.5 + 2.0**-7).all())  # x / s is rounded to 24 bits
    assert torch.equal(dequantize(found, scale, zero), (found.float() - zero_point) * scale)
