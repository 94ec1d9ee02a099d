"""A network that computes as ONNX Runtime's integer kernels do: the reference that exported files are tested against.

Convolutions, linear layers, additions, products, average poolings and concatenations of quantized tensors run on their
codes; data movement moves codes. Everything else (softmax, normalization, swish, ...) runs in float32 between
dequantizing and quantizing, as it does in the runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from brecq.converted.grids import (
    DEQUANTIZE,
    DEQUANTIZE_CHANNELS,
    QUANTIZE,
    Grid,
    constant,
    grid_of,
    is_integer_layer,
    is_joined,
    quantized_as,
)
from brecq.converted.inputs import InputTypes
from brecq.deploy.complete import Completed, complete, has_wide
from brecq.deploy.simulate import kernels
from brecq.deploy.simulate.arithmetic import Layer, OnnxRuntime
from brecq.deploy.simulate.choices import CHOICES, chosen
from brecq.deploy.simulate.runtimes import find
from brecq.deploy.simulate.values import Codes, Constant, Pending, real
from brecq.graph import ops
from brecq.graph.integer import function_of, slope_of
from brecq.placement.quantizer import output_axis

if TYPE_CHECKING:
    from brecq.result import QuantResult

aten = ops.aten

_FLOAT_ONLY = {
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default,
}  # fmt: skip
"""Movement that PyTorch has no kernels of bytes for (of signed ones, or of any)."""

Tap = Callable[[Node, Tensor, Callable[[], Tensor]], Tensor | None]
"""Sees the codes that a quantizer makes, and what it makes them of if it asks; what it returns takes their place."""


def simulate(result: QuantResult, runtime: str = "OnnxRuntime") -> IntegerModel:
    """The integer simulation of a result.

    Args:
        runtime: whose kernels: `OnnxRuntime`, `LiteRT`, or `FixedPoint` for CMSIS-NN and LiteRT's reference kernels.

    Raises:
        ConfigError: an unknown runtime. ExportError: the result holds no ranges to complete it with.
    """
    arithmetic = find(runtime, wide=has_wide(result.converted))
    completed = complete(result, linear_outputs=arithmetic.linear_outputs, products=arithmetic.products)
    return IntegerModel(completed, arithmetic)


class IntegerModel(nn.Module):
    """Runs a completed program on integers; takes and returns what the network does, float tensors.

    Attributes:
        completed: the program. arithmetic: the kernels, ONNX Runtime's by default. only_on: where it runs;
            `brecq.evaluate` leaves it there.
    """

    only_on = "cpu"

    def __init__(self, completed: Completed, arithmetic: OnnxRuntime | None = None) -> None:
        super().__init__()
        self.completed, self.arithmetic = completed, arithmetic or OnnxRuntime()
        self.graph = completed.graph
        self._types = InputTypes(dict(zip(completed.inputs, (x.dtype for x in completed.example_inputs), strict=True)))
        self._constants = {node: self._read(node) for node in self.graph.graph.nodes if _is_stored(node)}

    @property
    def joins_constants(self) -> bool:
        """Whether a constant that is joined with codes is codes, too."""
        return self.arithmetic.joins_constants

    def _read(self, node: Node) -> Constant | Codes:
        if self.joins_constants and is_joined(node):
            return Codes(constant(self.graph, node.args[0]), grid_of(node))
        return read_constant(self.graph, node)

    @torch.no_grad()
    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """Inputs by position, or by the names of `completed.inputs`.

        Raises:
            DataError: an input is of another type than the network's.
        """
        inputs, named = self._types(self, inputs, named)
        inputs += tuple(named[name] for name in self.completed.inputs[len(inputs) :]) if named else ()
        return real(_Integers(self, None).run(*inputs))

    def on_codes(self, node: Node) -> bool:
        """True for a layer or function that this runtime, unlike most, computes on codes."""
        if ops.kind(node) is not None:
            return self.arithmetic.transposed and is_integer_layer(node)
        name, source = function_of(node), quantized_as(node.args[0]) if node.args else None
        if name is None or source is None or not node.users:
            return False
        grids = [grid_of(user) if user.target is QUANTIZE else None for user in node.users]
        return all(grid and self.arithmetic.looks_up(name, source, grid, slope_of(node)) for grid in grids)

    def loose(self) -> set[str]:
        """Names of operators that this runtime computes by several kernels, whose codes may be a step apart."""
        nodes = self.graph.graph.nodes
        return {ops.op_name(node) for node in nodes if node.op == "call_function" and self.arithmetic.is_loose(node)}

    @torch.no_grad()
    def codes(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The codes that every quantizer makes of `inputs`, by its name in `Completed.quantizers`, in order."""
        return self.follow(inputs, {})[1]

    @torch.no_grad()
    def follow(
        self, inputs: Sequence[Tensor], codes: Mapping[str, Tensor]
    ) -> tuple[Any, dict[str, Tensor], dict[str, float]]:
        """Run on `inputs`, but go on from the given `codes` of quantizers, by name, instead of those computed.

        Returns:
            The output; the codes computed, each from the given ones before it, so that a difference from the given
            ones began right there; and of every quantizer whose codes differ the `distance_from_border`.
        """
        names = {node: name for name, node in self.completed.quantizers().items()}
        found: dict[str, Tensor] = {}
        borders: dict[str, float] = {}

        def tap(node: Node, computed: Tensor, value: Callable[[], Tensor]) -> Tensor | None:
            name = names[node]
            found[name] = computed
            if name not in codes:
                return None
            given = codes[name].reshape(computed.shape).to(computed.dtype)
            if not torch.equal(given, computed):
                borders[name] = distance_from_border(computed, given, value(), grid_of(node))
            return given

        return real(_Integers(self, tap).run(*inputs)), found, borders


def distance_from_border(codes: Tensor, given: Tensor, values: Tensor, grid: Grid) -> float:
    """Where codes differ, how far the value they are made of is from halfway between the two: the largest, in steps.

    Two ways to compute a value that differ in its last bits round it to two codes only where this is next to nothing.

    Args:
        codes, given: of equal shape. values: float, what `codes` are on the `grid`.
    """
    apart = codes != given
    exact = values.reshape(codes.shape)[apart].double() / grid.scale + grid.zero_point
    return float((exact - (codes[apart].double() + given[apart].double()) / 2).abs().max())


class _Integers(Interpreter):
    def __init__(self, model: IntegerModel, tap: Tap | None) -> None:
        super().__init__(model.graph)
        self.constants, self.arithmetic, self.tap = model._constants, model.arithmetic, tap

    def run_node(self, n: Node) -> Any:
        if n in self.constants:
            return self.constants[n]
        if n.op != "call_function" or ops.is_size(n):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.target is QUANTIZE:
            return self._quantize(n, args[0])
        if n.target is DEQUANTIZE and isinstance(args[0], Codes):
            return Codes(args[0].codes, grid_of(n))
        if n.target is aten.clamp.default and n.args[0].target is QUANTIZE:  # type: ignore[union-attr]
            return Codes(args[0].codes.clamp(*args[1:]), args[0].grid)
        if n.target in CHOICES:
            return chosen(n.target, real(args), real(kwargs))
        result = _on_codes(self.arithmetic, n, args, kwargs)
        return n.target(*real(args), **real(kwargs)) if result is None else result  # type: ignore[operator]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Arithmetic on sizes."""
        if args and isinstance(args[0], Codes):
            args = (args[0].codes, *args[1:])
        return super().call_function(target, real(args), kwargs)

    def _quantize(self, node: Node, value: Any) -> Codes:
        grid = grid_of(node)
        codes = value.on(grid) if isinstance(value, Pending) else self._on_grid(value, grid)
        if self.tap is not None:
            given = self.tap(node, codes, lambda: real(value))
            codes = codes if given is None else given
        return Codes(codes, grid)

    def _on_grid(self, value: Any, grid: Grid) -> Tensor:
        if isinstance(value, Codes) and self.arithmetic.moves_codes:
            return self.arithmetic.regrid(value.codes, value.grid, grid)
        return self.arithmetic.quantize(real(value), grid)


def _on_codes(arithmetic: OnnxRuntime, node: Node, args: Any, kwargs: Any) -> Any:
    """The result of an operator on integers, or `None` where it computes in float."""
    target, first = node.target, args[0] if args else None
    if target is ops.operator.getitem and isinstance(first, (list, tuple)):
        return first[args[1]]
    if ops.kind(node) is not None:
        return _layer(arithmetic, node, args)
    if target in ops.CONCAT:
        return _concatenate(arithmetic, target, args)
    if not isinstance(first, Codes):
        return None
    if ops.moves(node):
        return _move(target, first, args, kwargs)
    if name := function_of(node):
        operator: Any = target
        numbers = partial(operator, first.real(), *real(args[1:]), **kwargs)
        function = partial(arithmetic.function, name, first.codes, first.grid, slope_of(node))
        return Pending(lambda grid: _or_quantized(arithmetic, function(grid), numbers, grid), numbers)
    second = args[1] if len(args) > 1 else None
    if isinstance(second, Codes) and not kwargs and target in (aten.add.Tensor, aten.mul.Tensor):
        kernel = arithmetic.add if target is aten.add.Tensor else arithmetic.multiply
        return Pending(
            lambda grid: kernel(first.codes, first.grid, second.codes, second.grid, grid),
            lambda: target(first.real(), second.real()),
        )
    if target is aten.adaptive_avg_pool2d.default and list(args[1]) == [1, 1]:
        return Pending(
            lambda grid: arithmetic.global_average(first.codes, first.grid, grid),
            lambda: target(first.real(), args[1]),
        )
    if target is aten.avg_pool2d.default and not (arithmetic.moves_codes and _has_unequal_windows(args)):
        return Pending(
            lambda grid: arithmetic.average(
                lambda x: target(x, *args[1:]), math.prod((list(args[1]) * 2)[:2]), first.codes, first.grid, grid
            ),
            lambda: target(first.real(), *args[1:]),
        )
    return None


def _or_quantized(arithmetic: OnnxRuntime, codes: Tensor | None, real: Callable[[], Tensor], grid: Grid) -> Tensor:
    return arithmetic.quantize(real(), grid) if codes is None else codes


def _layer(arithmetic: OnnxRuntime, node: Node, args: Any) -> Pending | None:
    """A convolution or linear layer with a quantized input, weight and (if it has any) bias."""
    x, weight, bias = [*args, None][:3]
    kind = str(ops.kind(node))
    if not isinstance(x, Codes) or not isinstance(weight, Constant):
        return None
    if kind.startswith("conv_transpose") and not arithmetic.transposed:
        return None
    if bias is not None and not isinstance(bias, Constant):
        return None
    target: Any = node.target
    channel = node.meta["val"].dim() - 1 if kind == "linear" else 1
    shape = [1] * node.meta["val"].dim()
    shape[channel] = -1
    total = kernels.accumulate(
        lambda x, w: target(x, w, None, *args[3:]),
        x.codes,
        x.grid,
        weight.integers,
        None if bias is None else bias.integers.reshape(shape),
        output_axis(node),
    )
    steps = weight.scale.reshape(shape if weight.axis >= 0 else ())
    layer = layer_of(node, weight, bias)
    return Pending(
        lambda grid: arithmetic.requantize(layer, total, x.grid, steps, grid),
        lambda: total.to(torch.float32) * (kernels.single(x.grid.scale) * steps),
    )


def layer_of(node: Node, weight: Constant, bias: Constant | None) -> Layer:
    """What decides which kernel computes a convolution or linear layer."""
    kind, source = str(ops.kind(node)), node.args[0]
    groups: Any = node.args[6] if kind.startswith("conv") and len(node.args) > 6 else 1
    shape = source.meta["val"].shape  # type: ignore[union-attr]
    odd = kind == "linear" and shape[-1] % 2 == 1
    int32 = kernels.fits_int32(weight.integers, None if bias is None else bias.integers, output_axis(node))
    return Layer(kind, groups, groups == shape[1], kernels.fits_int4(weight.integers), odd, int32)


def _concatenate(arithmetic: OnnxRuntime, target: Any, args: Any) -> Codes | Pending | None:
    parts = args[0]
    if not all(isinstance(part, Codes) for part in parts):
        return None
    first = parts[0].grid
    if all(part.grid.same_codes(first) for part in parts):
        low, high = min(part.grid.low for part in parts), max(part.grid.high for part in parts)
        grid = Grid(first.scale, first.zero_point, low, high, first.dtype)
        return Codes(target([part.codes for part in parts], *args[1:]), grid)
    return Pending(
        lambda grid: target([arithmetic.regrid(part.codes, part.grid, grid) for part in parts], *args[1:]),
        lambda: target([part.real() for part in parts], *args[1:]),
    )


def _move(target: Any, x: Codes, args: Any, kwargs: Any) -> Any:
    codes, rest = x.codes, real(args[1:])
    if target in ops.PADS:
        mode, fill = ops.padding(target, rest)
        if mode != "constant":  # of codes as numbers: PyTorch pads no bytes so
            return Codes(target(codes.to(torch.float32), *rest).to(codes.dtype), x.grid)
        if fill:
            return None
        return Codes(aten.constant_pad_nd.default(codes, rest[0], x.grid.zero_point), x.grid)
    if target in _FLOAT_ONLY:
        return Codes(target(codes.to(torch.float32), *rest, **kwargs).to(codes.dtype), x.grid)
    moved = target(codes, *rest, **kwargs)
    if isinstance(moved, Tensor):
        return Codes(moved, x.grid)
    return [Codes(part, x.grid) for part in moved]


def _has_unequal_windows(args: Any) -> bool:
    """True for an average pooling that leaves its padding out: windows at the border hold fewer elements."""
    padding, include = [*args[3:], *[None] * 3][0], [*args[5:], None][0]
    return include is False and any(padding or [])


def _is_stored(node: Node) -> bool:
    if node.target not in (DEQUANTIZE, DEQUANTIZE_CHANNELS):
        return False
    codes: Any = node.args[0]
    return bool(codes.op == "get_attr")


def read_constant(graph: Any, node: Node) -> Constant:
    """The constant that a dequantize node of a program reads."""
    codes = constant(graph, node.args[0])
    if node.target is DEQUANTIZE:
        grid = grid_of(node)
        scale, zero_point, axis = torch.tensor([grid.scale]), torch.tensor([grid.zero_point]), -1
    else:
        scale, zero_point = constant(graph, node.args[1]), constant(graph, node.args[2])
        axis = int(node.args[3])  # type: ignore[arg-type]
    shape = [1] * codes.dim()
    shape[axis] = -1
    integers = codes.to(torch.int32) - zero_point.to(torch.int32).reshape(shape if axis >= 0 else ())
    return Constant(integers if codes.dtype is torch.int32 else integers.to(torch.float32), scale, axis)
