"""AdaRound learns for each weight whether it is rounded down or up; the maths is in `brecq.quant.adaround`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brecq.quant import adaround
from brecq.quant.grid import Grid
from brecq.quant.learners.base import PenalizedLearner


class AdaRound(PenalizedLearner):
    """Learns the rounding of `w` on a grid that stays, from rounding to nearest or from `codes`.

    Args:
        w: what is rounded: each code is its floor or the one above. codes: int8, of w's shape.
    """

    rate = "rounding"

    def __init__(self, w: Tensor, grid: Grid, codes: Tensor | None = None) -> None:
        super().__init__(grid)
        scale, zero_point = grid.spread(w.dim())
        self.base = adaround.base_codes(w, scale, zero_point, grid.range)
        self.v = nn.Parameter(adaround.initial_logits(w, scale, zero_point, grid.range, codes))
        self.warm = codes is not None
        self.penalized = w.numel()

    def forward(self, x: Tensor) -> Tensor:
        """The soft weight; `x`, the weight itself, is not looked at."""
        return adaround.soft_weight(self.base, self.v, *self.start.spread(x.dim()), self.start.range)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        return {"codes": adaround.hard_codes(self.base, self.v, self.start.range).to(torch.int8)}

    def penalty(self, beta: float) -> Tensor:
        """Σ(1 − |2h(v) − 1|^β): zero when every weight is decided."""
        return adaround.rounding_regularizer(self.v, beta)
