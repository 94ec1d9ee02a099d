"""`.pt2` files in PyTorch: read, or lowered to the int8 convolutions and linear layers of oneDNN on x86."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from brecq.converted.grids import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE
from brecq.deploy.complete import has_wide
from brecq.deploy.formats import some
from brecq.deploy.pt2 import DIGEST
from brecq.deploy.runtime import Kernels
from brecq.errors import ExportError
from brecq.graph.fold import add_constant, get_tensor
from brecq.graph.ops import kind
from brecq.storage.pt2 import load_program


def read(path: Path | str, extra: dict[str, Any] | None = None) -> ExportedProgram:
    """The program of a `.pt2` file; `read(path).module()` runs it. Extra files named in `extra` are put there.

    Raises:
        ExportError: the file cannot be read, or holds what could run code.
    """
    return load_program(
        Path(path), ExportError, remedy="give a file that brecq export --format pt2 wrote", extra=extra
    )


def compile_x86(path: Path | str) -> Callable[..., Any]:
    """The program of a `.pt2` file, lowered to int8 kernels by `torch.compile` (x86, needs a C++ compiler).

    Convolutions and linear layers with a quantized input become int8 kernels, fused with the activation function and
    the quantizer behind them. Transposed convolutions, pooling, additions, and attention run in float.

    The result takes the network's inputs; its first call compiles, and so does the first with another batch size.

    Raises:
        ExportError: the file cannot be read, has asymmetric 8-bit weights (oneDNN's kernels ignore zero points), or
            16-bit activations, which no kernel takes.
    """
    graph = _frozen(path)
    if has_wide(graph):
        raise ExportError(
            "PyTorch has no integer kernels for 16-bit activations; run the program as it is: "
            "torch.export.load(path).module()"
        )
    return _lower_x86(graph)


def load(path: Path, threads: int = 1) -> Session:
    """A `.pt2` file lowered by `compile_x86`, as `brecq verify` and `brecq benchmark` run it."""
    return Session(path, threads)


class Session:
    """A `.pt2` file lowered by `compile_x86`; with 16-bit activations as it is, operator by operator."""

    name = "torch.compile on x86"

    def __init__(self, path: Path, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        extra: dict[str, Any] = {DIGEST: None}
        graph = _frozen(path, extra)
        self.digest: str | None = extra[DIGEST] or None
        self._layers = sum(kind(node) is not None for node in graph.graph.nodes)
        self._integer: int | None = None
        self._run: Callable[..., Any] = graph if has_wide(graph) else _lower_x86(graph)
        if has_wide(graph):
            self.name = "PyTorch"

    @torch.no_grad()
    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        from torch._dynamo.utils import counters

        before = _prepacked(counters)
        found = self._run(*map(torch.from_numpy, inputs))
        compiled = _prepacked(counters) - before
        if compiled or self._integer is None:
            self._integer = compiled
        return [leaf.numpy() for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]

    def kernels(self) -> Kernels | None:
        """Layers that became int8 kernels when a call last compiled; `None` before the first call.

        Each of the first batch sizes is compiled by itself: at batch 1, Inductor turns linear layers of at most 16
        inputs and outputs into float products and sums, which no int8 kernel takes.
        """
        if self._integer is None:
            return None
        return Kernels(self._integer, self._layers - self._integer, {})


def _prepacked(counters: Any) -> int:
    """How many int8 layers Inductor has found so far."""
    found = counters["inductor"]
    return int(found["qconv_weight_prepack_matcher_count"] + found["qlinear_weight_prepack_matcher_count"])


def _frozen(path: Path | str, extra: dict[str, Any] | None = None) -> GraphModule:
    graph = read(path, extra).module()
    assert isinstance(graph, GraphModule)
    _refuse_zero_points(graph)
    _unpack_once(graph)
    return graph


def _lower_x86(graph: GraphModule) -> Callable[..., Any]:
    import torch._inductor.config as settings
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401 (registers the fusions)

    compiled = torch.compile(graph)

    def run(*inputs: Any) -> Any:
        with settings.patch(freezing=True), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about its own code
            return compiled(*inputs)

    return run


@torch.no_grad()
def _unpack_once(graph: GraphModule) -> None:
    """Evaluate what unpacks weights; dequantizing them is left to the kernels.

    Transposed convolutions have no int8 kernel, and one that looks as if it had fails to compile: theirs are evaluated
    to the end.
    """
    for node in list(graph.graph.nodes):
        if str(kind(node)).startswith("conv_transpose"):
            value = _constant_value(graph, node.args[1])
            if value is not None:
                node.update_arg(1, add_constant(graph, f"{node.name}_weight", value, node))
    for node in list(graph.graph.nodes):
        if node.target is not DEQUANTIZE_CHANNELS and node.target is not DEQUANTIZE:
            continue
        value = _constant_value(graph, node.args[0])
        if value is not None:
            node.args = (add_constant(graph, f"{node.name}_codes", value, node), *node.args[1:])
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _constant_value(graph: GraphModule, node: Any) -> Any:
    """The value of a node that depends on constants only; `None` for others. Other arguments are their own value."""
    if not isinstance(node, Node):
        return node
    if node.op == "get_attr":
        return get_tensor(graph, str(node.target))
    if node.op != "call_function" or node.target is QUANTIZE or not node.all_input_nodes:
        return None
    values = {source: _constant_value(graph, source) for source in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return None
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _refuse_zero_points(graph: GraphModule) -> None:
    bad = [
        str(node.args[0].target)
        for node in graph.graph.nodes
        if node.target is DEQUANTIZE_CHANNELS and node.args[2].op == "get_attr"
        if bool(get_tensor(graph, str(node.args[2].target)).any())
    ]
    if bad:
        raise ExportError(
            f"asymmetric 8-bit weights ({some(bad)}): oneDNN's kernels ignore their zero points; quantize with "
            "--weight-scheme auto or symmetric"
        )
