"""What every learner does: it gives a tensor a value while learning, and a result that becomes grid and codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from brecq.quant.grid import Grid
from brecq.quant.kernels import WHOLE, Rows

Rate = Literal["rounding", "step", "bias", "codes"]
"""What a parameter is a part of: each has a learning rate of its own."""


class Learner(nn.Module, ABC):
    """Learns how one tensor is quantized. A fake-quantizer has at most one, and forgets it when learning ends.

    Attributes:
        rate: of all its parameters; a learner with several overrides `groups`.
        random: whether `forward` draws at random, from `seed`, which changes in every step.
        warm: whether it starts from something else than the fake-quantizer had settled on.
        rows: of the batch that `forward` gets a tensor of.
    """

    rate: ClassVar[Rate]
    random: ClassVar[bool] = False
    warm: bool = False
    seed: int = 0
    rows: Rows = WHOLE

    def groups(self) -> Mapping[Rate, list[nn.Parameter]]:
        """The parameters to optimize, by learning rate."""
        return {self.rate: list(self.parameters())}

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The value of `x`, differentiable with respect to what is learned."""

    @abstractmethod
    def result(self) -> dict[str, Tensor]:
        """What the fake-quantizer settles on if learning stops now, by the names of its buffers. No gradient."""


class GridLearner(Learner):
    """Learns a tensor whose values lie on a grid; `start` is that of the fake-quantizer."""

    def __init__(self, start: Grid) -> None:
        super().__init__()
        self.start = start

    def grid(self) -> Grid:
        """The grid as learned so far, differentiable: `start` unless a learner changes it."""
        return self.start


class PenalizedLearner(GridLearner):
    """Learns what a regularizer drives to its end.

    Attributes:
        penalized: over how many values `penalty` sums.
    """

    penalized: int

    @abstractmethod
    def penalty(self, beta: float) -> Tensor:
        """The regularizer at exponent β, 0-dim."""
