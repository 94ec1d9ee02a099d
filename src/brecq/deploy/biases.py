"""Biases of layers that became integer ones by completion.

Reconstruction rounds the biases behind quantized inputs. Where completion quantizes an input, the bias is still float;
runtimes would round it themselves, and saturate it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from brecq.converted.grids import DEQUANTIZE, DEQUANTIZE_CHANNELS, constant, is_integer_layer, quantized_as
from brecq.graph.fold import add_constant
from brecq.placement.quantizer import output_axis
from brecq.quant import affine, room


@torch.no_grad()
def quantize_biases(graph: GraphModule) -> None:
    """Give every integer layer an int32 bias with the step of its accumulator, and room for it (see `quant.room`)."""
    for layer in list(graph.graph.nodes):
        bias: Any = layer.args[2] if len(layer.args) > 2 else None
        if not is_integer_layer(layer) or bias is None or bias.op != "get_attr":
            continue
        values, weight, grid = constant(graph, bias), layer.args[1], quantized_as(layer.args[0])
        assert grid is not None
        input_step, steps = torch.tensor(grid.scale, dtype=torch.float32), _steps(graph, weight)
        if weight.target is DEQUANTIZE_CHANNELS and not (
            weight.args[3] == output_axis(layer) and steps.numel() == values.numel()
        ):
            continue  # steps of inputs, or shared between groups: a bias element has none of its own
        least = room.least_steps(values, input_step, steps)
        if bool((least > steps).any()):
            raised = torch.maximum(steps, least)
            layer.replace_input_with(weight, _with_steps(graph, layer, weight, steps, raised))
            steps = raised
        layer.replace_input_with(bias, _rounded(graph, layer, bias, values, input_step, steps))


def _steps(graph: GraphModule, weight: Node) -> Tensor:
    scale: Any = weight.args[1]
    return constant(graph, scale) if isinstance(scale, Node) else torch.tensor([scale], dtype=torch.float32)


def _with_steps(graph: GraphModule, layer: Node, weight: Node, steps: Tensor, raised: Tensor) -> Node:
    """The weight on larger steps, for this layer alone."""
    stored, _, zero_point, *rest = weight.args
    name, codes = str(stored.target), constant(graph, stored)  # type: ignore[union-attr]
    ratio, zeros = steps / raised, torch.as_tensor(zero_point if isinstance(zero_point, int) else 0)
    if isinstance(zero_point, Node):
        axis: Any = rest[0]
        ratio = affine.per_channel(ratio, codes.dim(), axis)
        zeros = affine.per_channel(constant(graph, zero_point), codes.dim(), axis)
    new = add_constant(graph, f"{name}_moved", room.moved(codes, zeros, ratio), layer)
    scale = add_constant(graph, f"{name}_raised", raised, layer) if isinstance(zero_point, Node) else raised.item()
    return _call(graph, layer, weight.target, (new, scale, zero_point, *rest), weight.meta["val"])


def _rounded(graph: GraphModule, layer: Node, bias: Node, values: Tensor, input_step: Tensor, steps: Tensor) -> Node:
    name = str(bias.target)
    codes = add_constant(graph, f"{name}_codes", room.bias_codes(values, input_step, steps), layer)
    scale, limits = steps * input_step, (room.BIAS_RANGE.low, room.BIAS_RANGE.high, torch.int32)
    if scale.numel() == 1:
        return _call(graph, layer, DEQUANTIZE, (codes, scale.item(), 0, *limits), bias.meta["val"])
    zeros = add_constant(graph, f"{name}_zero_point", torch.zeros_like(scale, dtype=torch.int64), layer)
    step = add_constant(graph, f"{name}_scale", scale, layer)
    return _call(graph, layer, DEQUANTIZE_CHANNELS, (codes, step, zeros, 0, *limits), bias.meta["val"])


def _call(graph: GraphModule, before: Node, operator: Any, arguments: tuple[Any, ...], value: Any) -> Node:
    with graph.graph.inserting_before(before):
        node = graph.graph.call_function(operator, arguments)
    node.meta["val"] = value
    return node
