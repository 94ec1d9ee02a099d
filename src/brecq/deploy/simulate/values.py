"""What flows through the simulated network: codes, constants, and results that no grid has been chosen for yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from brecq.converted.grids import Grid
from brecq.deploy.simulate import kernels
from brecq.quant.affine import per_channel


@dataclass(frozen=True)
class Codes:
    """A quantized activation."""

    codes: Tensor
    grid: Grid

    def real(self) -> Tensor:
        return kernels.dequantize(self.codes, self.grid)


@dataclass(frozen=True)
class Constant:
    """A weight or bias: integers with the zero point subtracted (float32 for int8 codes, int32 for biases).

    `scale` is float32 [C] or [1]; `axis` is -1 for one scale in all.
    """

    integers: Tensor
    scale: Tensor
    axis: int

    def real(self) -> Tensor:
        scale = self.scale.reshape(()) if self.axis < 0 else per_channel(self.scale, self.integers.dim(), self.axis)
        return self.integers.to(torch.float32) * scale


@dataclass(frozen=True)
class Pending:
    """What an integer kernel is about to write: codes on the grid that the quantizer behind it names, or floats."""

    on: Callable[[Grid], Tensor]
    real: Callable[[], Tensor]


def real(value: Any) -> Any:
    """`value` with everything in it as float tensors."""
    kinds = (Codes, Constant, Pending)
    return pytree.tree_map(lambda leaf: leaf.real() if isinstance(leaf, kinds) else leaf, value, is_leaf=_is_value)


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, (Codes, Constant, Pending))
