"""What the fake-quantizers have in common: an integer range, a dtype, and one of four modes."""

from __future__ import annotations

import enum

import torch
from torchao.quantization.pt2e import FakeQuantizeBase

from brecq.quant.affine import IntRange

_PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)


class Mode(enum.Enum):
    """What a fake-quantizer does with the tensor that passes it."""

    FLOAT = "float"
    OBSERVE = "observe"
    LEARN = "learn"
    HARD = "hard"


class BaseFakeQuantize(FakeQuantizeBase):
    """What the three have in common: an integer range, a dtype and a mode."""

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

    @property
    def symmetric(self) -> bool:
        return self.qscheme in (torch.per_channel_symmetric, torch.per_tensor_symmetric)

    @property
    def active(self) -> bool:
        """True if values are changed at the moment."""
        return self.enabled and self.mode in (Mode.LEARN, Mode.HARD)

    def describe(self) -> str:
        """For the quantization scope: `4 bit asymmetric`; weights that have one scale in all say so."""
        if not self.enabled:
            return "float"
        scheme = "symmetric" if self.symmetric else "asymmetric"
        whole = " per tensor" if self.dtype is torch.int8 and self.qscheme in _PER_TENSOR else ""
        return f"{self.range.bits} bit {scheme}{whole}"

    def extra_repr(self) -> str:
        return f"{self.describe()}, {self.mode.value}"
