"""The fake-quantizer of activations that runs in every step: learned step size (LSQ) and random dropping (QDrop).

LSQ (Esser et al. 2020) learns the step s by the straight-through gradient of x̂ = s·(clamp(round(x/s) + z) − z).
QDrop (Wei et al. 2022) leaves random elements unquantized. Which ones is decided by a hash of the element's position
in memory and a seed: cheaper than a random generator, the same on every device, and recomputed in the backward
pass, so that nothing but x is kept for it. Forward and backward are one loop over the memory each, see `fusion`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from brecq.errors import ConfigError
from brecq.quant.fusion import Fused, FusedSum, backend, bounds, constants, dense, flat, like
from brecq.quant.grid import Grid

__all__ = ["WHOLE", "Rows", "backend", "drop_mask", "hash_mix", "lsq_qdrop", "on_grid"]

_RESOLUTION = 24
"""Bits of the hash that are compared with the drop probability."""


class Rows(NamedTuple):
    """Which samples of a batch a tensor holds: `here` of `total`, behind `before` others. What is drawn at random for
    them, and how they are weighted, is as in the whole batch."""

    before: int
    here: int
    total: int

    def numel(self, x: Tensor) -> int:
        """Elements of the whole batch, where x holds these rows."""
        return x.numel() // self.here * self.total

    def offset(self, x: Tensor) -> int:
        """Elements of the rows before those that x holds."""
        return x.numel() // self.here * self.before


WHOLE = Rows(0, 1, 1)
"""The batch as a whole."""


def lsq_qdrop(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    low: int,
    high: int,
    drop: float,
    seed: int,
    grad_scale: float,
    rows: Rows = WHOLE,
) -> Tensor:
    """Fake-quantize activations; bit for bit `affine.fake_quantize` where an element is not dropped.

    Args:
        x: activations of any shape; float32, or bfloat16/float16 (computed in float32, returned in x's dtype).
        scale: step s, positive, one float32 element.
        zero_point: z, one float32 element holding a whole number in low..high.
        low, high: smallest and largest code.
        drop: probability, 0 to 1, with which an element stays x.
        seed: any integer; another one in every step gives another mask.
        grad_scale: factor of the gradient of `scale`; LSQ takes 1/√(x.numel()·(high − low)).
        rows: of the batch that x holds, its samples outermost in memory: they are dropped as in the whole batch.

    Returns:
        Tensor like x, with x's memory layout. Gradients, for upstream gradient g:
        x: g where the code is not clamped or the element is dropped, else 0.
        scale: grad_scale·Σ g·(code − z − [not clamped]·x/s) over the elements that are not dropped.

    Raises:
        ConfigError: `drop` is not a probability, or x has 2³¹ elements or more.
    """
    return _LsqQdrop.apply(
        x, scale.reshape(()), zero_point.reshape(()), low, high, _mask_constants(x, drop, seed, rows), grad_scale
    )


def on_grid(x: Tensor, grid: Grid, drop: float = 0.0, seed: int = 0, rows: Rows = WHOLE) -> Tensor:
    """`lsq_qdrop` on the grid of a whole tensor, with LSQ's factor of the gradient of its step."""
    factor = 1.0 / math.sqrt(rows.numel(x) * (grid.range.high - grid.range.low))
    return lsq_qdrop(x, grid.scale, grid.zero_point, grid.range.low, grid.range.high, drop, seed, factor, rows)


def hash_mix(a: Tensor, b: Tensor, drop: float, seed: int, rows: Rows = WHOLE) -> Tensor:
    """a with a random share `drop` of its elements taken from b: QDrop at the input of a block. No gradient.

    The mask is that of `lsq_qdrop` for a. Tensors of the same shape, dtype and device; the result has a's layout.
    """
    with torch.no_grad():
        a = dense(a)
        mixed: Tensor = _mix(flat(a), flat(like(b, a)), _mask_constants(a, drop, seed, rows))
        return mixed.as_strided(a.shape, a.stride())


def drop_mask(x: Tensor, drop: float, seed: int, rows: Rows = WHOLE) -> Tensor:
    """The elements of x that `lsq_qdrop` drops: bool, of x's shape."""
    flat = _dropped(x.numel(), _mask_constants(x, drop, seed, rows))
    return flat.as_strided(x.shape, dense(x).stride())


class _LsqQdrop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, mask: Tensor, grad_scale: float
    ) -> Tensor:
        x = dense(x.detach())
        grid = torch.cat([torch.stack([scale, 1.0 / scale, zero_point]), bounds(low, high, scale.device)])
        ctx.save_for_backward(x, grid, mask)
        ctx.grad_scale = grad_scale
        quantized: Tensor = _quantize(flat(x), grid, mask)
        return quantized.as_strided(x.shape, x.stride())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, grid, mask = ctx.saved_tensors
        grad_scale, grad_x = _gradients(flat(x), flat(like(gradients[0], x)), grid, mask)
        return grad_x.as_strided(x.shape, x.stride()), grad_scale * ctx.grad_scale, None, None, None, None, None


@Fused
def _quantize(x: Tensor, grid: Tensor, mask: Tensor) -> Tensor:
    scale, inverse, zero_point, low, high = grid.unbind()
    value = x.to(torch.float32)
    codes = torch.clamp(torch.round(value * inverse) + zero_point, low, high)
    return torch.where(_dropped(x.numel(), mask), value, (codes - zero_point) * scale).to(x.dtype)


@FusedSum
def _gradients(x: Tensor, upstream: Tensor, grid: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    _, inverse, zero_point, low, high = grid.unbind()
    steps = x.to(torch.float32) * inverse
    unclamped = torch.round(steps) + zero_point
    codes = torch.clamp(unclamped, low, high)
    inside = codes == unclamped
    dropped = _dropped(x.numel(), mask)
    slope = (codes - zero_point) - torch.where(inside, steps, 0.0)
    grad_scale = torch.where(dropped, 0.0, upstream.to(torch.float32) * slope)
    return grad_scale, torch.where(inside | dropped, upstream, 0.0)


@Fused
def _mix(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    return torch.where(_dropped(a.numel(), mask), b, a)


def _dropped(numel: int, mask: Tensor) -> Tensor:
    """Bool [numel]: an integer hash of the numbers from `first` on, keyed, below the threshold.

    Xor-shift and multiply twice, with the constants of Chris Wellons' hash prospector, of which the top bits are used.
    int32, because that is what vectorizes: shifts keep the sign, so the first key is not negative (that shift is then
    a logical one), and after the second shift the sign's copies are masked away.
    """
    key_1, key_2, threshold, first = mask.unbind()
    x = torch.arange(numel, dtype=torch.int32, device=mask.device) + first ^ key_1
    x = (x ^ x >> 16) * 0x21F0AAAD ^ key_2
    x = (x ^ (x >> 15 & 0x1FFFF)) * (0xD35A2D97 - (1 << 32))
    return x >> (32 - _RESOLUTION) < threshold


def _mask_constants(x: Tensor, drop: float, seed: int, rows: Rows) -> Tensor:
    """[4] int32 on x's device: two keys, the threshold below which elements are dropped, the number of the first."""
    if not 0 <= drop <= 1:
        raise ConfigError(f"drop is {drop!r}; it is a probability, choose 0 to 1")
    if rows.numel(x) >= 1 << 31:
        raise ConfigError(f"an activation of shape {tuple(x.shape)} has 2^31 elements or more; lower the batch size")
    threshold = round(drop * (1 << _RESOLUTION)) - (1 << (_RESOLUTION - 1))
    return constants([*_keys(seed), threshold, rows.offset(x)], torch.int32, x.device)


def _keys(seed: int) -> list[int]:
    """A 31-bit and a signed 32-bit key: a step of splitmix64 (Steele et al. 2014), so that neighbouring seeds share
    nothing."""
    z = (seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    z = (z ^ z >> 27) * 0x94D049BB133111EB % (1 << 64)
    z ^= z >> 31
    return [z & 0x7FFFFFFF, (z >> 32) - (1 << 31)]
