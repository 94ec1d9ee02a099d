"""A run of a completed program that adds channels-last operators on the way, each by its handler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor as Numbers
from torch.fx import Interpreter, Node

from brecq.converted.grids import DEQUANTIZE, DEQUANTIZE_CHANNELS, is_joined
from brecq.deploy.complete import Completed
from brecq.deploy.lite.program import Codes, Tensor
from brecq.deploy.lite.values import Builder, Layout, Pending, Value, identity, usual
from brecq.deploy.outputs import output_names
from brecq.deploy.simulate.model import read_constant
from brecq.deploy.simulate.values import Constant
from brecq.errors import ExportError
from brecq.graph import ops
from brecq.graph.outputs import returned

Handler = Callable[["Lowering", Node, tuple[Any, ...], dict[str, Any]], Any]

HANDLERS: dict[Any, Handler] = {}
"""What makes operators of a PyTorch operator, by it. Arguments are `Value`s, or constants as PyTorch has them."""


def lowers(*targets: Any) -> Callable[[Handler], Handler]:
    """Register a handler."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(targets, handler))
        return handler

    return register


@dataclass(frozen=True)
class Runtime:
    """What the program is for, where runtimes differ.

    Attributes:
        name: in messages. grouped_int4: it has 4-bit convolutions in groups. odd_int4: it computes 4-bit depthwise
            convolutions right that have odd many inputs and are dilated, or have several outputs an input. tables: it
            looks a function of one code up in a table.
    """

    name: str
    grouped_int4: bool = True
    odd_int4: bool = True
    tables: bool = False


class Lowering(Interpreter):
    """Runs the program on example inputs, which makes every size a number, and adds operators on the way."""

    def __init__(self, completed: Completed, runtime: Runtime) -> None:
        super().__init__(completed.graph, garbage_collect_values=False)
        self.extra_traceback = False  # it would write the graph into messages
        self.completed, self.runtime = completed, runtime
        self.build = Builder()
        for node in completed.graph.graph.find_nodes(op="placeholder"):  # names of the network's own come first
            self.build.free(str(node.target))
        self.outputs = [self.build.free(name) for name in output_names(completed)]
        self.values: dict[Node, Any] = {}
        self.quantizers = {node: name for name, node in completed.quantizers().items()}
        self.computed = self._computed()

    def _computed(self) -> set[Node]:
        """Nodes that depend on the network's inputs, or are quantized as if they did, or joined with what does."""
        found: set[Node] = set()
        for node in self.completed.graph.graph.nodes:
            depends = node.op == "placeholder" or any(source in found for source in node.all_input_nodes)
            depends = (depends and node.op != "output" and not ops.is_size(node)) or is_joined(node)
            if depends or node in self.quantizers:
                found.add(node)
        return found

    def run_node(self, n: Node) -> Any:
        self.build.layer = ops.module_path(n)
        result = self.env[n] = super().run_node(n)
        if n.op == "placeholder":
            self.values[n] = self._input(n, result)
        elif n.op == "output":
            self._output()
        elif n in self.computed:
            args, kwargs = torch.fx.map_arg((n.args, n.kwargs), lambda node: self.values.get(node, self.env[node]))
            self.values[n] = HANDLERS[n.target](self, n, args, kwargs)
        return result

    def _input(self, node: Node, value: Numbers) -> Value:
        shape = tuple(value.shape)
        if not value.is_floating_point():
            self.refuse(node, f"takes an input of {value.dtype}")
        layout = usual(len(shape))
        tensor = Tensor(str(node.target), tuple(shape[dim] for dim in layout), "float32")
        self.build.program.inputs.append(tensor)
        return Value(self.build, tensor.name, shape, reals={layout: tensor})

    def _output(self) -> None:
        for name, (_, source) in zip(self.outputs, returned(self.completed.graph), strict=True):
            if not isinstance(source, Node):
                continue
            found = self.value(source)
            tensor = found.real(usual(found.rank))
            if tensor in self.build.program.outputs or tensor in self.build.program.inputs:
                tensor = self.build.emit("RESHAPE", [tensor], "copy", tensor.shape, newShape=list(tensor.shape))
            tensor.name = name
            self.build.program.outputs.append(tensor)

    def value(self, source: Any, rank: int | None = None) -> Value:
        """A value that is there: numbers become constants, what is pending is computed in float.

        Args:
            rank: of a constant that is to broadcast; ones come before its dimensions.
        """
        if isinstance(source, Node):
            source = self.values.get(source, self.env[source])
        if isinstance(source, Pending):
            return source.real()
        if isinstance(source, Value):
            return source
        numbers = torch.as_tensor(source, dtype=torch.float32).detach()
        numbers = numbers.reshape([1] * ((rank or numbers.dim()) - numbers.dim()) + list(numbers.shape))
        tensor = Tensor(self.build.free("constant"), tuple(numbers.shape), "float32", None, numbers.numpy())
        return Value(self.build, tensor.name, tensor.shape, reals={identity(numbers.dim()): tensor})

    def quantized(self, name: str, shape: tuple[int, ...], layout: Layout, tensor: Tensor, offset: int) -> Value:
        """The value that a quantizer of this name makes; whoever traces the file finds it."""
        self.build.program.codes[name] = Codes(tensor, offset, layout)
        return Value(self.build, name, shape, codes={layout: tensor})

    def stored(self, node: Any) -> Constant | None:
        """The integers of a constant that a dequantize node reads."""
        if not isinstance(node, Node) or node.target not in (DEQUANTIZE, DEQUANTIZE_CHANNELS):
            return None
        source: Any = node.args[0]
        return read_constant(self.completed.graph, node) if source.op == "get_attr" else None

    def refuse(self, node: Node, reason: str) -> None:
        """Raise: the target cannot express a node."""
        where = ops.module_path(node) or node.name
        raise ExportError(f"{self.runtime.name}: {ops.op_name(node)} in {where} {reason}; export to ONNX or OpenVINO")


def numpy(value: Numbers) -> np.ndarray:
    array: np.ndarray = value.detach().cpu().numpy()
    return array
