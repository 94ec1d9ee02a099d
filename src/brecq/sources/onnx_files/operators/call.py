"""An operator at work, what it is given, and the table of all operators by name.

A value is a tensor, or a numpy array of what is known on the host: shapes, indices, scales. Arithmetic on shapes stays
on the host, with the symbol of the batch among its numbers, so that `torch.export` never asks a tensor for its values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brecq.errors import SourceError

Value = Any
"""A tensor or a numpy array; `None` for an input that is left out."""

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float32, 11: torch.float32, 16: torch.float32,
}  # fmt: skip
"""By ONNX's number; half, double and bfloat16 are computed in float32."""


class Call:
    """An operator at work: its attributes, its version, and its inputs."""

    def __init__(self, kind: str, attributes: dict[str, Any], opset: int, outputs: int) -> None:
        self.kind, self.attributes, self.opset, self.outputs = kind, attributes, opset, outputs
        self.inputs: list[Value] = []
        self.batch: int | None = None

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def has_attribute(self, name: str) -> bool:
        return name in self.attributes

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def tensor(self, index: int) -> Tensor:
        return as_tensor(self.inputs[index], next((x for x in self.inputs if isinstance(x, Tensor)), None))

    def optional(self, index: int) -> Tensor | None:
        return self.tensor(index) if self.has(index) else None

    def host(self, index: int, what: str) -> np.ndarray[Any, Any]:
        """An input that has to be known before the network runs."""
        value = self.inputs[index]
        if isinstance(value, Tensor):
            raise SourceError(f"{self.kind}: its {what} is computed from activations; give a file where it is fixed")
        return value

    def numbers(self, index: int, attribute: str) -> list[Any] | None:
        """A list that older versions keep in an attribute and newer ones in an input."""
        if self.has(index):
            return list(self.host(index, attribute).reshape(-1))
        found = self.get(attribute)
        return None if found is None else list(found)


def as_tensor(value: Value, like: Tensor | None = None) -> Tensor:
    """A value as a tensor, on the device of `like`."""
    if isinstance(value, Tensor):
        return value
    device = None if like is None else like.device
    if value.dtype != object:
        return torch.tensor(value, device=device)
    flat = [torch.scalar_tensor(each, dtype=torch.int64, device=device) for each in value.reshape(-1)]
    return torch.stack(flat).reshape(value.shape) if flat else torch.zeros(value.shape, dtype=torch.int64)


Function = Callable[[Call], Any]
OPERATORS: dict[str, Function] = {}


def operator(*kinds: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        OPERATORS.update(dict.fromkeys(kinds, function))
        return function

    return register
