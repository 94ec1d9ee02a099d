"""Whether a captured graph can be learned through: operators without a derivative are found before any learning."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from brecq.errors import CaptureError, first_line
from brecq.graph import ops


def check_derivatives(graph: GraphModule, inputs: Sequence[Any]) -> None:
    """Run the graph once.

    Raises:
        CaptureError: an operator behind a layer has no derivative; the message names it and its module.
    """
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        _Traced(graph).run(*(value.detach() if isinstance(value, Tensor) else value for value in inputs))


class _Traced(Interpreter):
    """Every operator starts anew from inputs that want a gradient, if a layer is before them: nothing is kept."""

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function":
            try:
                self._differentiate(n, result)
            except RuntimeError as error:
                path = ops.module_path(n)
                raise CaptureError(
                    f"{ops.op_name(n)}{f' in {path}' if path else ''} has no derivative in PyTorch "
                    f"({first_line(error)}), so nothing before it can be learned; write it with other "
                    "operators, or quantize the part before it alone (submodule=..., --submodule)"
                ) from error
        layer = ops.kind(n) is not None
        return pytree.tree_map_only(Tensor, lambda value: _restart(value, layer), result)

    def _differentiate(self, n: Node, result: Any) -> None:
        sources = [self.env[source] for source in n.all_input_nodes if isinstance(self.env[source], Tensor)]
        sources = [value for value in sources if value.requires_grad]
        made = [value for value in pytree.tree_leaves(result) if isinstance(value, Tensor) and value.requires_grad]
        if sources and made:
            ones = [torch.ones_like(value) for value in made]
            torch.autograd.grad(made, sources, ones, allow_unused=True)


def _restart(value: Tensor, layer: bool) -> Tensor:
    wanted = value.is_floating_point() and (layer or value.requires_grad)
    return value.detach().requires_grad_(wanted)
