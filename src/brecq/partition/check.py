"""Checks of every run, on a few samples: what is quantized is the user's network, before and after learning.

The float network, its capture, the prepared graph with all quantizers off, and its blocks in order compute the same,
up to float noise; so do the converted program and the graph that it was made from. What parts is refused by the name
of the first layer that does.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule, Interpreter, Node

from brecq.capture.randomness import not_deterministic
from brecq.devices import device_of
from brecq.errors import BrecqError, CaptureError
from brecq.forward import Inputs, call, evaluating, like, tensors
from brecq.graph import ops
from brecq.graph.difference import difference_of, flat, largest
from brecq.graph.outputs import plain
from brecq.partition.blocks import Network

SAMPLES = 4

TOLERANCE = 1e-5
"""Largest difference that needs no explanation, relative to the tensor's largest value."""

_NOISE = 32
"""How many times the effect of changing every constant by one unit in its last place is float noise."""


def few(inputs: Inputs) -> Inputs:
    """The first samples of the inputs; a single one is repeated, as some programs hold only for two or more."""
    values = [v[:SAMPLES] if len(v) > 1 else v.repeat(2, *[1] * (v.dim() - 1)) for v in tensors(inputs)]
    return like(inputs, values)


class FloatNetwork:
    """The user's network on a few samples, to compare graphs with.

    Args:
        inputs: what the network is called with.

    Raises:
        CaptureError: two runs on the same inputs give different outputs.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model, home = model, device_of(model)
        self.inputs = like(inputs, [value.to(home) for value in tensors(few(inputs))])
        with torch.no_grad(), evaluating(model), plain(model):
            self.outputs = flat(call(model, self.inputs))
            again = flat(call(model, self.inputs))
        if largest(self.outputs, again) > TOLERANCE:
            raise CaptureError(not_deterministic("", self._first_unsteady()))

    @torch.no_grad()
    def check(self, graph: GraphModule, what: str) -> None:
        """Refuse a float graph that computes something else than the network.

        Raises:
            CaptureError: names the first layer that parts. `what`: the graph, for the message.
        """
        values = tensors(self.inputs)
        found = flat(graph(*values))
        difference = largest(self.outputs, found)
        if difference <= TOLERANCE:
            return
        limit = max(TOLERANCE, _NOISE * (_noise(graph, values, found) if difference < 1 else 0.0))
        if difference > limit:
            raise CaptureError(
                f"{what} is not the network: its output differs by {difference:.1e} of the largest value"
                f"{self._where(graph, limit)}; float noise would be {limit:.1e}. This is a fault of brecq: please "
                "report it, and quantize the parts of the network before and behind as submodules"
            )

    def _where(self, graph: GraphModule, limit: float) -> str:
        """The first module whose output no value of the graph, at its operators, equals."""
        with _recorded(self.model) as calls, evaluating(self.model):
            call(self.model, self.inputs)
        recorded = [value for values in calls.values() for each in values for value in each]
        values = node_values(graph, tensors(self.inputs))
        last = {ops.module_path(node): node for node in values if ops.module_path(node) in calls}
        for path, node in last.items():
            same = (difference_of(value, values[node]) for value in recorded if value.shape == values[node].shape)
            if min(same, default=1.0) > limit:
                return f", first behind {path!r} ({ops.op_name(node)})"
        return ""

    @torch.no_grad()
    def _first_unsteady(self) -> str:
        """The module whose own forward gives two outputs for the same inputs: the first, and the innermost."""
        runs = []
        with evaluating(self.model):
            for _ in range(2):
                with _traced(self.model) as calls:
                    call(self.model, self.inputs)
                runs.append(calls)
        for (path, given, made), (again, given_again, made_again) in zip(*runs, strict=False):
            if path == again and largest(given, given_again) <= TOLERANCE < largest(made, made_again):
                return path or type(self.model).__name__
        return ""


@torch.no_grad()
def check_blocks(network: Network, inputs: Sequence[Tensor]) -> None:
    """Refuse blocks that, run in order, do not compute what the whole prepared graph computes, bit for bit.

    Raises:
        BrecqError: names the first block that parts.
    """
    values: dict[str, Tensor] = dict(zip(network.inputs, inputs, strict=True))
    between = {name for block in network.blocks for name in block.outputs}
    wanted = {node.name: value for node, value in node_values(network.graph, inputs, between).items()}
    last = {name: block for block in network.blocks for name in block.inputs}
    for block in network.blocks:
        made = block(values)
        for name, value in made.items():
            if difference_of(wanted.pop(name), value) > TOLERANCE:
                raise BrecqError(
                    f"block {block.name!r} alone computes another {name} than in the network; this is a fault of "
                    "brecq: please report it, and try granularity='net'"
                )
        kept = {**values, **made}
        values = {name: value for name, value in kept.items() if name in last and last[name] is not block}


@torch.no_grad()
def check_converted(prepared: GraphModule, converted: GraphModule, inputs: Sequence[Tensor]) -> str | None:
    """Refuse a converted program that differs from the prepared graph, in hard mode, that it was made from.

    On the CPU they are equal bit for bit. Where a kernel adds up in another order, a value between two codes falls to
    the other side: 1 % of the largest value is let through, and said.

    Returns:
        A note for the report, or `None`.

    Raises:
        BrecqError: they differ by more.
    """
    values = tensors(few(tuple(inputs)))
    difference = largest(flat(prepared(*values)), flat(converted(*values)))
    if difference > 1e-2:
        raise BrecqError(
            f"the converted program differs from the quantized network by {difference:.1e} of its largest value; this "
            "is a fault of brecq: please report it"
        )
    if difference > TOLERANCE:
        return f"the converted program differs from the quantized network by {difference:.1e} of its largest value"
    return None


def node_values(
    graph: GraphModule, inputs: Sequence[Tensor], names: Container[str] | None = None
) -> dict[Node, Tensor]:
    """Every activation of a graph, or those of these `names`."""
    run = _Recorder(graph, names)
    run.run(*inputs, enable_io_processing=False)
    return run.values


class _Recorder(Interpreter):
    def __init__(self, module: GraphModule, names: Container[str] | None) -> None:
        super().__init__(module)
        self.names = names
        self.values: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        wanted = self.names is None or n.name in self.names
        if wanted and isinstance(value, Tensor) and n.op in ("call_function", "call_module"):
            self.values[n] = value
        return value


@contextmanager
def _recorded(model: nn.Module) -> Iterator[dict[str, list[list[Tensor]]]]:
    """Outputs of every call of the modules without children, by path."""
    calls: dict[str, list[list[Tensor]]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _module, _args, output, name=name: calls.setdefault(name, []).append(flat(output))
        )
        for name, module in model.named_modules()
        if next(module.children(), None) is None
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _traced(model: nn.Module) -> Iterator[list[tuple[str, list[Tensor], list[Tensor]]]]:
    """Path, inputs and outputs of every call of every module, in the order in which they end."""
    calls: list[tuple[str, list[Tensor], list[Tensor]]] = []
    open_calls: list[list[Tensor]] = []
    hooks = []
    for name, module in model.named_modules():
        enter = module.register_forward_pre_hook(
            lambda _module, args, kwargs: open_calls.append(flat((args, kwargs))), with_kwargs=True
        )
        leave = module.register_forward_hook(
            lambda _module, _args, output, name=name: calls.append((name, open_calls.pop(), flat(output)))
        )
        hooks += [enter, leave]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _noise(graph: GraphModule, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """How far the outputs move when every constant and input changes by a unit in its last place."""
    generator = torch.Generator().manual_seed(0)

    def shaken(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        signs = torch.randint(3, value.shape, generator=generator).to(value) - 1
        return value * (1 + torch.finfo(value.dtype).eps * signs)

    state = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
    moved = []
    for _ in range(2):
        constants = {name: shaken(value) for name, value in state.items()}
        moved.append(largest(outputs, flat(functional_call(graph, constants, tuple(map(shaken, inputs))))))
    return max(moved)
