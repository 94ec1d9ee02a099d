"""A converted program small enough to read: 2, 4 and 8 bit weights, int32 biases, shared and float constants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from brecq.converted.convert import to_program

decomposed = torch.ops.quantized_decomposed


class Layer(nn.Module):
    """Integer weight and bias of a layer with `out` channels along `axis` of the weight."""

    def __init__(self, shape: tuple[int, ...], bits: int, *, symmetric: bool = False, axis: int = 0) -> None:
        super().__init__()
        self.high = (1 << (bits - 1)) - 1
        self.low = -self.high if symmetric else -self.high - 1
        self.axis, out = axis, shape[axis]
        zero_point = torch.zeros(out) if symmetric else torch.randint(self.low, self.high + 1, (out,))
        self.register_buffer("weight", torch.randint(self.low, self.high + 1, shape, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.rand(out) + 0.01)
        self.register_buffer("weight_zero_point", zero_point.to(torch.int64))
        self.register_buffer("bias", torch.randint(-(2**20), 2**20, (out,), dtype=torch.int32))
        self.register_buffer("bias_scale", torch.rand(out) * 1e-6)
        self.register_buffer("bias_zero_point", torch.zeros(out, dtype=torch.int64))

    def forward(self) -> tuple[Tensor, Tensor]:
        weight = decomposed.dequantize_per_channel.default(
            self.weight, self.weight_scale, self.weight_zero_point, self.axis, self.low, self.high, torch.int8
        )
        limits = torch.iinfo(torch.int32)
        bias = decomposed.dequantize_per_channel.default(
            self.bias, self.bias_scale, self.bias_zero_point, 0, limits.min, limits.max, torch.int32
        )
        return weight, bias


class Converted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Layer((8, 3, 3, 3), 8, symmetric=True)
        self.body = Layer((8, 8, 3, 3), 2)
        self.up = Layer((8, 6, 2, 2), 4, axis=1)
        self.head = Layer((5, 6), 3)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = decomposed.quantize_per_tensor.default(x, 0.03125, 128, 0, 255, torch.uint8)
        x = decomposed.dequantize_per_tensor.default(x, 0.03125, 128, 0, 255, torch.uint8)
        x = torch.relu(nn.functional.conv2d(x, *self.stem(), padding=1))
        body = self.body()
        x = torch.relu(nn.functional.conv2d(x, *body, padding=1))
        x = torch.relu(nn.functional.conv2d(x, *body, padding=1))  # one constant at two places
        x = nn.functional.conv_transpose2d(x, *self.up(), stride=2)
        return nn.functional.linear(self.norm(x.mean((2, 3))), *self.head())


@pytest.fixture
def converted() -> GraphModule:
    """Takes images of shape [N, 3, H, W]."""
    return to_program(Converted().requires_grad_(False).eval(), (torch.randn(2, 3, 8, 8),)).module()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 8, 8)
