"""The grids of a layer's rows, and the step and zero point that fit given codes best, in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from brecq.quant.affine import IntRange
from brecq.quant.ranges import MIN_SCALE

Columns = slice | Tensor
"""Some columns of rows [G, R, K]: a slice of them, or an index [G, W]."""

ALL = slice(None)


def columns(values: Tensor, at: Columns) -> Tensor:
    """Those columns of `values` [G, R, K]."""
    if isinstance(at, slice):
        return values[:, :, at]
    return values.gather(2, at[:, None].expand(-1, values.shape[1], -1))


@dataclass(frozen=True)
class RowGrid:
    """Element (g, r, k) of the rows is worth scale·(code − zero_point) of its owner; codes are those of `range`.

    Attributes:
        scale, zero_point: float64 [S].
        owner: int64 [G, R, 1], which of the S a row has, or [G, R, K] where they vary within rows.
        least: smallest step that fitting may choose.
    """

    scale: Tensor
    zero_point: Tensor
    owner: Tensor
    range: IntRange
    least: float = MIN_SCALE

    @property
    def by_row(self) -> bool:
        """True if each row has one step."""
        return self.owner.shape[2] == 1

    def steps(self, at: Columns = ALL) -> tuple[Tensor, Tensor]:
        """Step and zero point of each element: broadcastable with [G, R, K], or with those columns of it."""
        owner = self.owner if self.by_row else columns(self.owner, at)
        return self.scale[owner], self.zero_point[owner]

    def codes(self, rows: Tensor, at: Columns = ALL) -> Tensor:
        """Rounded to nearest: codes as float64, [G, R, K], or columns `at` of them, of these columns of the rows."""
        scale, zero_point = self.steps(at)
        return ((rows / scale).round() + zero_point).clamp(self.range.low, self.range.high)

    def values(self, codes: Tensor, at: Columns = ALL) -> Tensor:
        """What codes, or those of columns `at`, are worth."""
        scale, zero_point = self.steps(at)
        return (codes - zero_point) * scale

    def sums(self, per_row: Tensor) -> Tensor:
        """Σ over the rows of each owner: [G, R] to [S]. Only where `by_row`."""
        return torch.zeros_like(self.scale).index_add_(0, self.owner.flatten(), per_row.flatten())

    def pick(self, better: Tensor, other: RowGrid) -> RowGrid:
        """The step and zero point of `other` where `better` (bool [S])."""
        scale = torch.where(better, other.scale, self.scale)
        return replace(self, scale=scale, zero_point=torch.where(better, other.zero_point, self.zero_point))


@dataclass(frozen=True)
class Products:
    """Of each row's weights w, its codes less their zero point k, and ones: ⟨a, b⟩ = a·H·bᵀ, float64 [G, R]. In place
    of w it may be the target w* that is meant: what is fitted is the same."""

    wk: Tensor
    w1: Tensor
    kk: Tensor
    k1: Tensor
    one: Tensor


def products(codes: Tensor, wanted: Tensor, gram: Tensor, grid: RowGrid) -> Products:
    """Args:
    codes: [G, R, K]. wanted: w·H, [G, R, K]. gram: H, [G, K, K]. All float64.
    """
    k = codes - grid.steps()[1]
    pressed = k @ gram
    one = gram.sum(1).sum(1, keepdim=True).expand(codes.shape[:2])
    return Products((wanted * k).sum(2), wanted.sum(2), (pressed * k).sum(2), pressed.sum(2), one)


def fit(of: Products, grid: RowGrid, shift: bool) -> RowGrid:
    """The best step for given codes, with `shift` also the best of the zero points z − 1, z, z + 1.

    With k = code − z, the error of s·k towards w is smallest at s = ⟨w, k⟩/⟨k, k⟩, by ⟨w, k⟩²/⟨k, k⟩ below that of 0,
    the products summed over the rows that share the step.
    """
    assert grid.by_row, "steps that vary within a row have no closed form"
    wk, w1, kk, k1, one = (grid.sums(each) for each in (of.wk, of.w1, of.kk, of.k1, of.one))
    best = torch.full_like(grid.scale, -1.0)
    scale, zero_point = grid.scale, grid.zero_point
    for offset in (0, -1, 1) if shift else (0,):  # k + offset, from a zero point that much lower
        along, norm = wk + offset * w1, kk + 2 * offset * k1 + offset**2 * one
        lowered = grid.zero_point - offset
        inside = (lowered >= grid.range.low) & (lowered <= grid.range.high)
        usable = (along > 0) & (norm > 0) & inside
        gain = torch.where(usable, along.square() / norm.clamp(min=1e-300), -1.0)
        better = gain > best
        best = torch.where(better, gain, best)
        scale = torch.where(better, (along / norm).clamp(min=grid.least), scale)
        zero_point = torch.where(better, lowered, zero_point)
    return replace(grid, scale=scale, zero_point=zero_point)
