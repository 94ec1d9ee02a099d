"""What the fake-quantizers have in common: an integer range, a dtype, one of four modes, at most one learner."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchao.quantization.pt2e import FakeQuantizeBase

from brecq.quant.affine import IntRange
from brecq.quant.grid import Grid
from brecq.quant.learners import GridLearner, Learner

_PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)


class Mode(enum.Enum):
    """What a fake-quantizer does with the tensor that passes it."""

    FLOAT = "float"
    OBSERVE = "observe"
    LEARN = "learn"
    HARD = "hard"


class BaseFakeQuantize(FakeQuantizeBase):
    """Holds what was settled, in buffers, and while learning the learner that will change it.

    Attributes:
        settled: names of the buffers.
        learner: gives the values in mode `LEARN`; in mode `HARD` its result does, as if learning had stopped.
    """

    settled: ClassVar[tuple[str, ...]]
    learner: Learner | None

    def __init__(self, range: IntRange, dtype: torch.dtype, qscheme: torch.qscheme, axis: int, enabled: bool) -> None:
        super().__init__()
        self.range = range
        self.dtype = dtype
        self.qscheme = qscheme
        self.ch_axis = axis
        self.quant_min, self.quant_max = range.low, range.high
        self.is_dynamic = False
        self.enabled = enabled
        self.mode = Mode.FLOAT
        for name in self.settled:
            self.register_buffer(name, None)
        self.register_module("learner", None)

    @property
    def symmetric(self) -> bool:
        return self.qscheme in (torch.per_channel_symmetric, torch.per_tensor_symmetric)

    @property
    def per_channel(self) -> bool:
        return self.qscheme not in _PER_TENSOR

    @property
    def active(self) -> bool:
        """True if values are changed at the moment."""
        return self.enabled and self.mode in (Mode.LEARN, Mode.HARD)

    def learn(self, learner: Learner) -> None:
        """Hand over to `learner`, which started from what is settled."""
        self.learner, self.mode = learner, Mode.LEARN

    def state(self) -> dict[str, Tensor]:
        """What is settled, by names for a file; with a learner, what would be if learning stopped now."""
        settled = {name: getattr(self, name) for name in self.settled}
        if self.learner is not None:
            settled |= self.learner.result()
        return {name: value for name, value in settled.items() if value is not None}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Settle on what `state` returned, end learning and go to hard mode."""
        for name in self.settled:
            setattr(self, name, state.get(name))
        self.learner, self.mode = None, Mode.HARD

    def describe(self) -> str:
        """For the quantization scope: `4 bit asymmetric`; weights that have one scale in all say so."""
        if not self.enabled:
            return "float"
        scheme = "symmetric" if self.symmetric else "asymmetric"
        whole = " per tensor" if self.dtype is torch.int8 and not self.per_channel else ""
        return f"{self.range.bits} bit {scheme}{whole}"

    def extra_repr(self) -> str:
        return f"{self.describe()}, {self.mode.value}"


class GridFakeQuantize(BaseFakeQuantize):
    """Of a tensor with a grid of its own, which an initializer chooses.

    Attributes:
        scale, zero_point: of the settled grid; `None` before it is chosen.
    """

    settled: ClassVar[tuple[str, ...]] = ("scale", "zero_point")
    learner: GridLearner | None
    scale: Tensor | None
    zero_point: Tensor | None

    @property
    def initialized(self) -> bool:
        return self.scale is not None

    @property
    def grid(self) -> Grid:
        """The current grid, differentiable while it is learned. Settling on another keeps the codes."""
        if self.learner is not None:
            return self.learner.grid()
        assert self.scale is not None, "initialize was not called"
        assert self.zero_point is not None
        return Grid(self.scale, self.zero_point, self.range, self.ch_axis if self.per_channel else None)

    @grid.setter
    def grid(self, grid: Grid) -> None:
        self.scale, self.zero_point = grid.scale, grid.zero_point

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        return self.grid.scale.reshape(-1), self.grid.zero_point.to(torch.int64).reshape(-1)
