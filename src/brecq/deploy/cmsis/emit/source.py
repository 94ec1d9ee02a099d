"""C while it is written, and the pieces that the calls of kernels are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brecq.deploy.lite.padding import SAME, same
from brecq.deploy.lite.program import Operator, Tensor

RELU = 1


@dataclass
class Source:
    """C while it is written.

    Attributes:
        pointers: what stands for a tensor. constants: array declarations. lines: of the function. used: helpers.
        scratch: bytes that kernels work in, at most. flash: bytes of the constants.
    """

    pointers: dict[Tensor, str]
    constants: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    scratch: int = 0
    flash: int = 0
    _arrays: dict[tuple[str, bytes], str] = field(default_factory=dict)

    def array(self, name: str, kind: str, values: Sequence[int] | np.ndarray) -> str:
        """The name of a constant array; equal ones are stored once."""
        array = np.asarray(values, np.int8 if kind == "int8_t" else np.int32).reshape(-1)
        key = (kind, array.tobytes())
        if key not in self._arrays:
            label = f"{identifier(name)}_{len(self._arrays)}"
            self._arrays[key] = label
            rows = [array[start : start + 24] for start in range(0, len(array), 24)]
            body = ",\n".join("    " + ", ".join(map(str, row)) for row in rows)
            self.constants.append(f"static const {kind} {label}[{len(array)}] = {{\n{body}\n}};\n")
            self.flash += array.nbytes
        return self._arrays[key]

    def helper(self, name: str) -> str:
        self.used.add(name)
        return name


def identifier(name: str) -> str:
    """A C identifier like `name`."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in f"t_{name}")


def tensors(operator: Operator) -> tuple[list[Tensor], Tensor]:
    return [each for each in operator.inputs if each is not None], operator.outputs[0]


def clamp(operator: Operator, output: Tensor) -> tuple[int, int]:
    """Bounds of the codes that an operator writes."""
    fused = operator.options.get("fusedActivationFunction", 0)
    return (max(-128, output.zero_point), 127) if fused == RELU else (-128, 127)


def braces(*values: Any) -> str:
    return "{" + ", ".join(str(value) for value in values) + "}"


def dims(shape: Sequence[int]) -> str:
    return braces(*shape)


def four(shape: Sequence[int]) -> list[int]:
    """A shape as batch, height, width, channels."""
    return [1] * (4 - len(shape)) + list(shape) if len(shape) <= 4 else [1, 1, math.prod(shape[:-1]), shape[-1]]


def checked(function: str, *arguments: Any) -> str:
    """A call that ends the network where the kernel refuses its arguments."""
    return f"if ({function}({', '.join(map(str, arguments))}) != ARM_CMSIS_NN_SUCCESS) return 1;"


def plain(source: Source, helper: str, *arguments: Any) -> None:
    """A call of one of the file's own functions."""
    source.lines.append(f"    {source.helper(helper)}({', '.join(map(str, arguments))});")


def call(source: Source, statements: Sequence[str]) -> None:
    source.lines += ["    {", *(f"        {line}" for line in statements), "    }"]


def aligned(size: int) -> int:
    return -(-size // 16) * 16


def leading(
    operator: Operator, shape: Sequence[int], taps: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Padding above and to the left; that on the other sides follows from the output's size."""
    if "pads" in operator.options:
        return list(operator.options["pads"])
    if operator.options["padding"] != SAME:
        return [0, 0]
    return [same(*each)[0] for each in zip(shape[1:3], taps, stride, dilation, strict=True)]
