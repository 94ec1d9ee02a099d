"""What brecq knows about ATen operators: which carry weights, which are elementwise, which only move data."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten

WEIGHTED: dict[Any, str] = {
    aten.conv1d.default: "conv1d",
    aten.conv1d.padding: "conv1d",
    aten.conv2d.default: "conv2d",
    aten.conv2d.padding: "conv2d",
    aten.conv3d.default: "conv3d",
    aten.conv3d.padding: "conv3d",
    aten.conv_transpose1d.default: "conv_transpose1d",
    aten.conv_transpose2d.input: "conv_transpose2d",
    aten.conv_transpose3d.input: "conv_transpose3d",
    aten.linear.default: "linear",
}
"""Operators with a weight (argument 1) and an optional bias (argument 2) that brecq quantizes."""

LAYER = "brecq_layer"
"""In the metadata of a weighted operator: its layer's name, where its weight has another's."""

TIED = "brecq_tied"
"""In the metadata of a weighted operator: the modules that hold its weight, where there are several."""

ADD = {aten.add.Tensor}

ELEMENTWISE = {
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
    aten.clamp_max.default, aten.leaky_relu.default, aten.prelu.default, aten.elu.default, aten.selu.default,
    aten.celu.default, aten.gelu.default, aten.silu.default, aten.mish.default, aten.hardswish.default,
    aten.hardsigmoid.default, aten.sigmoid.default, aten.tanh.default, aten.softplus.default, aten.threshold.default,
    aten.log_sigmoid.default, aten.exp.default, aten.pow.Tensor_Scalar, aten.abs.default, aten.neg.default,
    aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default, aten.mul.Tensor, aten.mul.Scalar,
    aten.div.Tensor, aten.div.Scalar, aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar,
    aten.rsub.Scalar, aten.batch_norm.default, aten.dropout.default, aten.maximum.default, aten.minimum.default,
    aten.square.default, aten.erf.default,
}  # fmt: skip
"""Operators that act on each element alone (batch norm in eval mode too)."""

MOVEMENT = {
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int, aten.permute.default,
    aten.transpose.int, aten.t.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.slice.Tensor,
    aten.select.int, aten.expand.default, aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default,
    aten.unbind.int, aten.contiguous.default, aten.clone.default, aten.alias.default, aten.detach.default,
    aten.dropout.default, aten.roll.default, aten.channel_shuffle.default, aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default, aten.narrow.default, aten.flip.default, aten.repeat.default,
    aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default, aten.constant_pad_nd.default, aten.pad.default,
    operator.getitem,
}  # fmt: skip
"""Operators whose output holds only elements of their input (and zeros): a quantized tensor stays quantized.

`moves` leaves out those that add a number of their own.
"""

PADS = {aten.pad.default, aten.constant_pad_nd.default}

CONCAT = {aten.cat.default, aten.stack.default, aten.concat.default}

SIZES = {aten.sym_size.int, aten.sym_numel.default, aten.sym_stride.int, aten.sym_storage_offset.default}
"""Sizes of tensors: numbers that do not depend on a tensor's values."""

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
_ARITHMETIC = {operator.mul, operator.add, operator.sub, operator.floordiv}


def kind(node: Node) -> str | None:
    """The kind of a weighted operator (`conv2d`, `linear`, ...), or `None`."""
    return WEIGHTED.get(node.target) if node.op == "call_function" else None


def moves(node: Node) -> bool:
    """True for operators of `MOVEMENT`, but a padding with a number that need not be on the grid of its input."""
    if node.target in PADS:
        mode, fill = padding(node.target, node.args[1:])
        return mode != "constant" or fill == 0 or math.isinf(fill)
    return node.target in MOVEMENT


def padding(target: Any, rest: Sequence[Any]) -> tuple[str, float]:
    """Mode and fill value of an operator of `PADS`, from its arguments after the input."""
    mode, fill = ("constant", [*rest, 0][1]) if target is aten.constant_pad_nd.default else [*rest, None, None][1:3]
    return mode or "constant", float(fill or 0)


def sides(amounts: Sequence[Any]) -> list[tuple[int, int]]:
    """Amounts of padding, the last dimension's first, as (before, after) of each of the last dimensions in order."""
    numbers = [int(amount) for amount in amounts]
    return list(zip(numbers[0::2], numbers[1::2], strict=True))[::-1]


def input_names(graph: GraphModule) -> list[str]:
    """What the inputs of a program are called when it is called by name, in order."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    info = getattr(graph.graph._codegen, "pytree_info", None)
    given = [] if info is None else [name for name in info.orig_args if name != "self"]
    return given if len(given) == len(inputs) else [str(node.target) for node in inputs]


def op_name(node: Node) -> str:
    """A short name of the operator, e.g. `conv2d`, `add`, `layer_norm`."""
    name = getattr(node.target, "__name__", str(node.target))
    return name.split(".")[0]


def is_random(node: Node) -> bool:
    """True for operators that draw random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def is_tensor(node: Node) -> bool:
    """True for nodes whose value is one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def is_size(node: Node) -> bool:
    """True for sizes of tensors and arithmetic on them; each block rebuilds what it needs from its own inputs."""
    if node.op != "call_function":
        return False
    if node.target in SIZES:
        return True
    val = node.meta.get("val")
    numbers = isinstance(val, _NUMBERS) if "val" in node.meta else node.target in _ARITHMETIC
    return numbers and bool(node.all_input_nodes) and all(map(is_size, node.all_input_nodes))


def module_path(node: Node) -> str:
    """The path of the module whose `forward` called the operator (`layer1.0.conv1`); empty at the root."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    return path.split("@")[0]


def module_types(node: Node) -> dict[str, str]:
    """Path to class name of every module on the call stack of a node, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    names = {path.split("@")[0]: getattr(kind, "__name__", str(kind)) for path, kind in stack.values()}
    return {path: name.rpartition(".")[2] for path, name in names.items()}
