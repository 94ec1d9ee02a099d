"""Values while a program is lowered: one tensor in several memory orders, as codes, as numbers, or still to come."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brecq.deploy.lite.grids import CodeGrid
from brecq.deploy.lite.program import Operator, Program, Quantization, Tensor, constant

Layout = tuple[int, ...]
"""For each dimension in memory, which one of the network's it is: (0, 2, 3, 1) holds [N, C, H, W] channels last."""

CHANNELS_LAST: Layout = (0, 2, 3, 1)


def identity(rank: int) -> Layout:
    return tuple(range(rank))


def usual(rank: int) -> Layout:
    """Pictures are channels last, everything else as the network has it."""
    return CHANNELS_LAST if rank == 4 else identity(rank)


def arranged(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """The shape in memory of a tensor of the network's `shape`."""
    return tuple(shape[dim] for dim in layout)


class Builder:
    """Adds operators to a program; names are unique."""

    def __init__(self) -> None:
        self.program = Program()
        self.layer = ""
        self._names: dict[str, int] = {}

    def tensor(
        self, name: str, shape: Sequence[int], dtype: str = "float32", quantization: Quantization | None = None
    ) -> Tensor:
        return Tensor(self.free(name), tuple(shape), dtype, quantization)

    def free(self, name: str) -> str:
        """`name`, or one like it that is not taken."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if not count else self.free(f"{name}_{count}")

    def emit(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        name: str,
        shape: Sequence[int],
        like: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """An operator with one output: float32, or of the type and on the grid of `like`."""
        dtype, quantization = ("float32", None) if like is None else (like.dtype, like.quantization)
        output = self.tensor(name, shape, dtype, quantization)
        self.program.operators.append(Operator(kind, _given(inputs), [output], options, self.layer))
        return output

    def emit_on(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        name: str,
        shape: Sequence[int],
        grid: CodeGrid,
        fuses: bool = False,
        **options: Any,
    ) -> Tensor:
        """An operator whose output are codes on `grid`, within its bounds.

        Args:
            fuses: the operator takes a fused activation function.
        """
        lowest, highest = grid.ends
        low = grid.low > lowest
        if fuses and grid.is_rectified:
            options["fusedActivationFunction"] = RELU
            low = False
        named = name if not low and grid.high == highest else f"{name}_all"
        codes = self.tensor(named, shape, grid.dtype, grid.quantization)
        self.program.operators.append(Operator(kind, _given(inputs), [codes], options, self.layer))
        if low:
            codes = self._bounded("MAXIMUM", codes, grid.low, name)
        if grid.high < highest:
            codes = self._bounded("MINIMUM", codes, grid.high, name)
        return codes

    def _bounded(self, kind: str, codes: Tensor, bound: int, name: str) -> Tensor:
        limit = Tensor(f"code{bound}", (1,), codes.dtype, codes.quantization, np.array([bound], codes.dtype))
        return self.emit(kind, [codes, limit], name, codes.shape, codes)


def _given(inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Without the bias that a layer does not have."""
    return [*inputs[:-1], *([] if inputs[-1] is None else inputs[-1:])]


RELU, RELU6 = 1, 3
"""Fused activation functions of the schema."""


@dataclass(eq=False)
class Value:
    """A tensor of the network, of shape `shape`.

    Attributes:
        codes: by layout, int8 or int16. reals: by layout, float32. Either may be empty, not both.
        padded: zeros around it that its readers still have to add: (before, after) for each dimension.
    """

    build: Builder
    name: str
    shape: tuple[int, ...]
    codes: dict[Layout, Tensor] = field(default_factory=dict)
    reals: dict[Layout, Tensor] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def layouts(self) -> list[Layout]:
        """Memory orders that it is in, those of codes first."""
        return [*self.codes, *self.reals]

    @property
    def is_quantized(self) -> bool:
        return bool(self.codes)

    @property
    def is_wide(self) -> bool:
        """True for int16 codes."""
        return self.is_quantized and self.held().dtype == "int16"

    def held(self) -> Tensor:
        """The codes in the memory order that they are in already."""
        return next(iter(self.codes.values()))

    def code(self, layout: Layout) -> Tensor:
        """The tensor of codes in a memory order."""
        return _in_order(self, self.codes, layout)

    def real(self, layout: Layout) -> Tensor:
        """The float32 tensor in a memory order."""
        if layout not in self.reals and self.codes:
            source = self.code(layout)
            name = f"{source.name}_dequantized"
            self.reals[layout] = self.build.emit("DEQUANTIZE", [source], name, source.shape)
        return _in_order(self, self.reals, layout)

    def either(self, layout: Layout) -> Tensor:
        """Codes where there are any."""
        return self.code(layout) if self.codes else self.real(layout)


def _in_order(value: Value, found: dict[Layout, Tensor], layout: Layout) -> Tensor:
    if layout in found:
        return found[layout]
    held, source = next(iter(found.items()))
    shape = arranged(value.shape, layout)
    order = [held.index(dim) for dim in layout]
    if source.data is not None:
        data = np.ascontiguousarray(source.data.transpose(order))
        moved = Tensor(value.build.free(source.name), shape, source.dtype, source.quantization, data)
    elif same_order(value.shape, held, layout):
        moved = reshaped(value.build, source, shape)
    else:
        inputs = [source, constant("order", order)]
        moved = value.build.emit("TRANSPOSE", inputs, f"{source.name}_moved", shape, source)
    found[layout] = moved
    return moved


def same_order(shape: Sequence[int], first: Layout, second: Layout) -> bool:
    """True if elements lie in memory one after another alike: only dimensions of size 1 are elsewhere."""
    return [dim for dim in first if shape[dim] != 1] == [dim for dim in second if shape[dim] != 1]


def reshaped(build: Builder, source: Tensor, shape: Sequence[int]) -> Tensor:
    """`source` read with another shape."""
    if source.data is not None:
        name, data = build.free(source.name), source.data.reshape(shape)
        return Tensor(name, tuple(shape), source.dtype, source.quantization, data)
    inputs = [source, constant("shape", list(shape))]
    return build.emit("RESHAPE", inputs, f"{source.name}_shaped", shape, source, newShape=list(shape))


@dataclass(eq=False)
class Pending:
    """What an integer operator is about to write: codes on the grid that the quantizer behind it names, or floats."""

    on: Callable[[CodeGrid, str], Value]
    real: Callable[[], Value]


Runs = list[tuple[list[int], list[int]]]


def runs(before: Sequence[int], after: Sequence[int]) -> Runs:
    """What a reshaping splits and merges: dimensions that become others, run by run."""
    groups: Runs = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(left), j + len(right)
        a, b = math.prod(before[dim] for dim in left), math.prod(after[dim] for dim in right)
        while a != b:
            if a < b:
                left.append(i)
                a, i = a * before[i], i + 1
            else:
                right.append(j)
                b, j = b * after[j], j + 1
        groups.append((left, right))
    return groups


def gathered(before: Sequence[int], after: Sequence[int], layout: Layout) -> Layout:
    """The memory order most like `layout` in which a reshaping moves nothing: each of its runs in one piece."""
    groups = runs(before, after)
    where = {dim: number for number, (left, _) in enumerate(groups) for dim in left}
    return tuple(dim for number in dict.fromkeys(where[dim] for dim in layout) for dim in groups[number][0])


def regroup(before: Sequence[int], after: Sequence[int], layout: Layout) -> Layout | None:
    """The memory order behind a reshaping that moves nothing, or `None` if elements have to move."""
    if gathered(before, after, layout) != layout:
        return None
    groups = runs(before, after)
    where = {dim: number for number, (left, _) in enumerate(groups) for dim in left}
    order = list(dict.fromkeys(where[dim] for dim in layout))
    missing = [number for number in range(len(groups)) if number not in order]  # new dimensions of size 1
    return tuple(dim for number in [*order, *missing] for dim in groups[number][1])
