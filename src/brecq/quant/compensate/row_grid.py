"""The grids of a layer's rows, and the step and zero point that fit given codes best, in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from brecq.quant.affine import IntRange
from brecq.quant.ranges import MIN_SCALE


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

    def steps(self) -> tuple[Tensor, Tensor]:
        """Step and zero point of each element: broadcastable with [G, R, K]."""
        return self.scale[self.owner], self.zero_point[self.owner]

    def codes(self, rows: Tensor) -> Tensor:
        """Rounded to nearest: codes as float64, [G, R, K]."""
        scale, zero_point = self.steps()
        return ((rows / scale).round() + zero_point).clamp(self.range.low, self.range.high)

    def values(self, codes: Tensor) -> Tensor:
        scale, zero_point = self.steps()
        return (codes - zero_point) * scale

    def sums(self, per_row: Tensor) -> Tensor:
        """Σ over the rows of each owner: [G, R] to [S]. Only where `by_row`."""
        return torch.zeros_like(self.scale).index_add_(0, self.owner.flatten(), per_row.flatten())

    def pick(self, better: Tensor, other: RowGrid) -> RowGrid:
        """The step and zero point of `other` where `better` (bool [S])."""
        scale = torch.where(better, other.scale, self.scale)
        return replace(self, scale=scale, zero_point=torch.where(better, other.zero_point, self.zero_point))


def fit(codes: Tensor, wanted: Tensor, gram: Tensor, grid: RowGrid, shift: bool) -> RowGrid:
    """The best step for given codes, with `shift` also the best of the zero points z − 1, z, z + 1.

    With k = code − z, the error of s·k towards w is smallest at s = ⟨w, k⟩/⟨k, k⟩, by ⟨w, k⟩²/⟨k, k⟩ below that of 0,
    where ⟨a, b⟩ = a·H·bᵀ summed over the rows that share the step.

    Args:
        codes: [G, R, K]. wanted: w·H, [G, R, K]. gram: H, [G, K, K]. All float64.
    """
    assert grid.by_row, "steps that vary within a row have no closed form"
    k = codes - grid.zero_point[grid.owner]
    pressed = k @ gram
    ones = gram.sum(1)[:, None]  # 1·H
    wk, kk = grid.sums((wanted * k).sum(2)), grid.sums((pressed * k).sum(2))
    offsets = (0, -1, 1) if shift else (0,)
    w1 = grid.sums(wanted.sum(2))
    k1, one = grid.sums(pressed.sum(2)), grid.sums(ones.sum(2).expand(codes.shape[:2]))
    best = torch.full_like(grid.scale, -1.0)
    scale, zero_point = grid.scale, grid.zero_point
    for offset in offsets:  # k + offset, from a zero point that much lower
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
