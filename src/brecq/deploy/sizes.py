"""What a result would take if bits were all there is: the size that exported files are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.fx import GraphModule

from brecq.checkpoint.tensors import PackedWeight, collect_tensors

if TYPE_CHECKING:
    from brecq.result import QuantResult


def ideal_bytes(result: QuantResult) -> int:
    """Bits times weights, a 32-bit scale and a 32-bit bias per channel, and float tensors as they are, in bytes.

    Zero points and the scales of biases are left out: the former take no more bits than a weight, the latter follow
    from the others.
    """
    assert isinstance(result.converted, GraphModule)
    total = 0.0
    for stored in collect_tensors(result.converted).values():
        if isinstance(stored, PackedWeight):
            total += stored.codes().numel() * stored.bits / 8 + 4 * stored.scale.numel()
        elif isinstance(stored, Tensor):
            total += stored.numel() * stored.element_size()
        else:
            total += 4 * stored.codes.numel()
    return round(total)
