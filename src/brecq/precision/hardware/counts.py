"""Costs that are counted: stored bytes and bit-operations."""

from __future__ import annotations

from dataclasses import dataclass

from brecq.precision.budget import Cost
from brecq.precision.layers import Layer


@dataclass(frozen=True)
class ModelSize:
    """Bytes of the packed checkpoint's tensors, exactly as `QuantResult.weight_bytes` counts them.

    `overhead` is everything that the search does not touch: biases, settled weights, scales.
    """

    overhead: float
    name: str = "packed checkpoint"
    kind: Cost = "size"

    def cost(self, layer: Layer, w_bits: int, a_bits: int) -> float:
        """Bytes of the layer's weight; 0 where an earlier layer stores it, or `overhead` counts it."""
        return float(layer.weight_bytes.get(w_bits, 0))


@dataclass(frozen=True)
class BitOperations:
    """BOPs = multiply-accumulates × weight bits × input bits, per sample (as in HAWQ-V3, Yao et al. 2021).
    Float counts as 32 bits."""

    overhead: float = 0.0
    name: str = "bit-operations"
    kind: Cost = "bops"

    def cost(self, layer: Layer, w_bits: int, a_bits: int) -> float:
        """Bit-operations per sample."""
        return float(layer.macs) * w_bits * a_bits
