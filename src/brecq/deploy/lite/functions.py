"""Functions of one code: kernels of the runtime where it has them, tables of 256 codes where it has none."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from brecq.converted.grids import DEQUANTIZE, grid_of, quantized_as
from brecq.deploy.lite.grids import CodeGrid
from brecq.deploy.lite.lowering import Lowering
from brecq.deploy.lite.program import Tensor
from brecq.deploy.lite.values import Value
from brecq.deploy.simulate.arithmetic import FixedPoint, LiteRT
from brecq.graph import ops
from brecq.graph.integer import function_of, slope_of

_KERNELS = {
    "sigmoid": "LOGISTIC", "tanh": "TANH", "gelu": "GELU", "elu": "ELU", "leaky_relu": "LEAKY_RELU",
}  # fmt: skip
"""LiteRT's kernels of int8, by the names that targets' tables have. Its kernel of hardswish is left out: on x86
MobileNetV3-small takes three times as long with it as with hardswish in float (1.5 ms of processor time, and 4.6)."""


def native(low: Lowering, node: Node, grid: CodeGrid) -> tuple[Value, str, dict[str, Any]] | None:
    """The codes that a quantizer's input is a function of which LiteRT has an int8 kernel for, the kernel, options."""
    function: Any = node.args[0]
    name = function_of(function)
    x = low.values.get(function.args[0]) if name is not None else None
    source = quantized_as(function.args[0]) if name is not None else None
    if low.runtime.tables or name not in _KERNELS or source is None or not isinstance(x, Value) or not x.is_quantized:
        return None
    slope = slope_of(function)
    if x.is_wide or not LiteRT().looks_up(name, source, grid_of(node), slope):
        return None
    options: dict[str, Any] = {"alpha": slope} if name == "leaky_relu" else {}
    if name == "gelu":
        options["approximate"] = function.kwargs.get("approximate", "none") == "tanh"
    return x, _KERNELS[name], options


def looked_up(low: Lowering, node: Node, grid: CodeGrid) -> tuple[Value, Tensor] | None:
    """The codes that a quantizer's input is a function of, element by element, and the function's 256 values."""
    steps: list[Node] = []
    leaves: set[Node] = set()
    waiting: list[Any] = [node.args[0]]
    while waiting:
        each = waiting.pop()
        if each.target is DEQUANTIZE and each in low.computed:
            leaves.add(each)
        elif each.target in _OF_ONE and each not in steps:
            steps.append(each)
            waiting += each.all_input_nodes
        elif each not in steps:
            return None
    if len(leaves) != 1:
        return None
    (leaf,) = leaves
    source = low.values[leaf]
    held = source.held()
    numbers = (torch.arange(-128, 128) - held.zero_point).to(torch.float32) * torch.tensor(held.scale)
    found: dict[Node, Any] = {leaf: numbers}
    for each in low.completed.graph.graph.nodes:
        if each in steps:
            args, kwargs = torch.fx.map_arg((each.args, each.kwargs), found.__getitem__)
            found[each] = each.target(*args, **kwargs)
    codes = FixedPoint().quantize(found[node.args[0]], grid_of(node)).to(torch.int16) + grid.offset  # type: ignore[index]
    return source, Tensor("table", (256,), "int8", None, codes.to(torch.int8).numpy())


_OF_ONE = ops.ELEMENTWISE - {ops.aten.batch_norm.default, ops.aten.prelu.default, ops.aten.dropout.default}
"""Functions of one element, if their operands are."""
