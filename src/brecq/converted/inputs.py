"""What a converted program takes: tensors of its own types, and of others where the cast changes no value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from brecq.errors import DataError
from brecq.graph.ops import input_names

_EXACT = {
    torch.float32: (torch.float16, torch.bfloat16),
    torch.int64: (torch.int32, torch.int16, torch.int8, torch.uint8),
    torch.int32: (torch.int16, torch.int8, torch.uint8),
    torch.int16: (torch.int8, torch.uint8),
}
"""By type, the types that it holds every value of and that mean the same: whole numbers are no float input."""


class InputTypes:
    """Casts what a program is called with to its types, where that is exact.

    Args:
        types: of the inputs, by name, in order.
    """

    def __init__(self, types: Mapping[str, torch.dtype]) -> None:
        self.types = dict(types)

    @classmethod
    def of(cls, graph: GraphModule, example_inputs: Sequence[Any]) -> InputTypes:
        """The types of example inputs."""
        pairs = zip(input_names(graph), example_inputs, strict=False)
        return cls({name: value.dtype for name, value in pairs if isinstance(value, Tensor)})

    def guard(self, graph: GraphModule) -> None:
        """Stand before every call of the program, once."""
        if not any(isinstance(hook, InputTypes) for hook in graph._forward_pre_hooks.values()):
            graph.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A forward pre-hook, with keywords.

        Raises:
            DataError: an input is of another type; the message names it, its type and the one to give.
        """
        cast = [self._cast(name, value) for name, value in zip(self.types, args, strict=False)]
        return (*cast, *args[len(cast) :]), {name: self._cast(name, value) for name, value in kwargs.items()}

    def _cast(self, name: str, value: Any) -> Any:
        wanted = self.types.get(name)
        if not isinstance(value, Tensor) or wanted is None or value.dtype == wanted:
            return value
        if value.dtype not in _EXACT.get(wanted, ()):
            found, wanted_name = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, wanted))
            prepared = ", prepared as the calibration data were" if not value.dtype.is_floating_point else ""
            raise DataError(
                f"the input {name!r} is {found}, and the network takes {wanted_name}: give it as {wanted_name} "
                f"(.to(torch.{wanted_name})){prepared}"
            )
        return value.to(wanted)
