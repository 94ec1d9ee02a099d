"""Cost models: what a layer costs at given bit-widths."""

from __future__ import annotations

from typing import Protocol

from brecq.precision.budget import Cost
from brecq.precision.layers import Layer


class HardwareModel(Protocol):
    """What a search asks of a cost model.

    Attributes:
        name: for people. kind: which budget it belongs to. overhead: what the network costs beside its layers.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Cost: ...

    @property
    def overhead(self) -> float: ...

    def cost(self, layer: Layer, w_bits: int, a_bits: int) -> float:
        """Cost of one layer: bytes, bit-operations per sample, or milliseconds per sample.

        Args:
            w_bits, a_bits: bits of its weight and of its input, 32 for float.

        Raises:
            HardwareError: the model says nothing about this layer; the message names it.
        """
        ...
