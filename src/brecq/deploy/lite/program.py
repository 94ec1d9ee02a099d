"""A channels-last program of int8 and float operators, as plain data. Operators and options are named as in LiteRT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Quantization:
    """value = (code - zero_point) * scale; float32 scales, [1] or one for each index along `axis`."""

    scale: np.ndarray
    zero_point: int = 0
    axis: int = 0

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Quantization)
            and np.array_equal(self.scale, other.scale)
            and (self.zero_point, self.axis) == (other.zero_point, other.axis)
        )

    def __hash__(self) -> int:
        return hash((self.scale.tobytes(), self.zero_point, self.axis))


@dataclass(eq=False)
class Tensor:
    """A value of the program.

    Attributes:
        name: what it is called in files. shape: in memory order. dtype: `float32`, `int8`, `int16`, `int4` (constants,
            an int8 array of codes), `int32`, `int64` or `bool`.
        quantization: of integers that stand for numbers. data: of a constant.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None = None
    data: np.ndarray | None = None

    @property
    def scale(self) -> float:
        """Of a per-tensor quantization."""
        assert self.quantization is not None
        return float(self.quantization.scale[0])

    @property
    def zero_point(self) -> int:
        assert self.quantization is not None
        return self.quantization.zero_point


@dataclass(eq=False)
class Operator:
    """An operator. `None` stands for an optional input that is left out; `layer` names the module it computes for."""

    kind: str
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    layer: str = ""


@dataclass
class Program:
    """Operators in the order of execution.

    Attributes:
        inputs, outputs: tensors, by the names of the network's inputs and outputs.
        codes: where the codes of the network's quantizers are, by the quantizer's name (`Completed.quantizers`).
    """

    operators: list[Operator] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    codes: dict[str, Codes] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """All tensors, inputs first, in the order in which operators name them."""
        found: dict[Tensor, None] = dict.fromkeys(self.inputs)
        for operator in self.operators:
            found.update(dict.fromkeys(each for each in (*operator.inputs, *operator.outputs) if each is not None))
        return list(found | dict.fromkeys(self.outputs))


@dataclass(frozen=True)
class Codes:
    """A tensor that holds the codes of a quantizer, each higher by `offset`, its dimensions in the order `layout`."""

    tensor: Tensor
    offset: int
    layout: tuple[int, ...]


def constant(name: str, values: np.ndarray | Sequence[int], dtype: str | None = None) -> Tensor:
    """A constant tensor without quantization; int32 by default for sequences."""
    array = values if isinstance(values, np.ndarray) else np.array(values, np.int32)
    return Tensor(name, array.shape, dtype or str(array.dtype), None, np.ascontiguousarray(array))


def no_bias(count: int, scale: np.ndarray, dtype: str) -> Tensor:
    """Zeros: the runtimes' convolutions insist on a bias. `scale`: of the sums, [count] or [1]."""
    return Tensor(f"zeros{count}", (count,), dtype, Quantization(scale), np.zeros(count, dtype))
