"""The quantized network as a module: whatever is done to it, its grids stay those that were learned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule

from brecq.errors import ConfigError


class Quantized(GraphModule):
    """A converted graph. It moves to other devices as any module does, and stays in float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantized:
        """What `half()`, `to(...)` and their like go through.

        Raises:
            ConfigError: it casts. Steps would be rounded or become 0, and codes of biases exceed what float16 holds.
        """
        cast = fn(torch.zeros(())).dtype
        if cast != torch.float32:
            raise ConfigError(
                f"a quantized network holds the steps of its grids in float32, and {str(cast).removeprefix('torch.')} "
                "would change them: leave it in float32, or export it to a runtime"
            )
        super()._apply(fn, recurse)
        return self
