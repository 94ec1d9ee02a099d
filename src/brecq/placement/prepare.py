"""Prepare: where a PT2E quantizer annotated a graph, brecq's fake-quantizers are put.

Any such quantizer decides the places and the integer ranges. Afterwards every weight has one `WeightFakeQuantize`
(also when several layers share it), every quantized activation an `ActivationFakeQuantize`, and every bias beside a
quantized weight a `BiasFakeQuantize`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import Quantizer

from brecq.errors import ConfigError
from brecq.graph import ops
from brecq.graph.dataflow import resolve
from brecq.graph.fold import get_tensor
from brecq.placement import pt2e
from brecq.placement.quantizer import output_axis
from brecq.placement.returned import return_inputs
from brecq.quant.affine import IntRange
from brecq.quant.fake_quant import ActivationFakeQuantize, BiasFakeQuantize, WeightFakeQuantize


def prepare(captured: GraphModule, quantizer: Quantizer) -> GraphModule:
    """Insert fake-quantizers into a captured graph, in place, all in float mode.

    Raises:
        ConfigError: the quantizer asks for something that brecq cannot learn (dynamic or float quantization).
    """
    prepared = pt2e.insert_observers(captured, quantizer)
    _replace_observers(prepared)
    _share_weight_quantizers(prepared)
    _share_with_tables(prepared)
    _add_bias_quantizers(prepared)
    return_inputs(prepared, lambda node: fake_quantize_node(prepared, node) is not None)
    prepared.graph.lint()
    prepared.delete_all_unused_submodules()
    prepared.recompile()
    return prepared


def fake_quantize_node(graph: GraphModule, node: Node | Any) -> Any:
    """The fake-quantizer module of a `call_module` node, or `None`."""
    if isinstance(node, Node) and node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if isinstance(module, (WeightFakeQuantize, ActivationFakeQuantize, BiasFakeQuantize)):
            return module
    return None


def input_quantizer(graph: GraphModule, layer: Node) -> ActivationFakeQuantize | None:
    """The fake-quantizer whose grid the input of a layer is on, seen through data movement and concatenation."""
    return grid_of(graph, layer.args[0])


def grid_of(graph: GraphModule, node: Any) -> ActivationFakeQuantize | None:
    """The fake-quantizer whose grid a tensor is on, seen through data movement and concatenation."""
    while isinstance(node, Node):
        module = fake_quantize_node(graph, node)
        if module is not None:
            return module if module.enabled else None
        if node.op != "call_function":
            return None
        if node.target in ops.CONCAT:
            grids = {grid_of(graph, part) for part in node.args[0]}  # type: ignore[union-attr]
            return grids.pop() if len(grids) == 1 else None
        if not ops.moves(node):
            return None
        node = node.args[0]
    return None


def _replace_observers(graph: GraphModule) -> None:
    """Swap each observer module for our fake-quantizer; one observer at several places stays one quantizer."""
    replacements: dict[nn.Module, nn.Module | None] = {}
    for node, observer in pt2e.observers(graph):
        if observer not in replacements:
            replacements[observer] = _fake_quantizer(node, observer)
        module = replacements[observer]
        if module is None:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            graph.graph.erase_node(node)
            continue
        source: Any = node.args[0]
        node.meta["val"] = source.meta.get("val")
        name = _name_of(graph, module, source)
        setattr(graph, name, module)
        node.target = name


def _name_of(graph: GraphModule, module: nn.Module, source: Node) -> str:
    base = f"{str(source.target).replace('.', '_') if source.op == 'get_attr' else source.name}_fake_quantize"
    name, count = base, 0
    while getattr(graph, name, module) is not module:
        count += 1
        name = f"{base}_{count}"
    return name


def _fake_quantizer(node: Node, observer: nn.Module) -> nn.Module | None:
    """Our counterpart of an observer; `None` for biases, which get their own quantizer later."""
    spec = pt2e.spec_of(observer)
    source: Any = node.args[0]
    is_constant = source.op == "get_attr"
    of_layers = is_constant and all(ops.kind(reader) and node in reader.args[1:3] for reader in node.users)
    if spec.dtype not in (torch.int8, torch.uint8) and (of_layers or spec.dtype is not torch.int16):
        if is_constant:
            return None
        raise ConfigError(
            f"the quantizer asks for {spec.dtype} at {source.name!r}; brecq quantizes to int8, uint8 and int16 ranges"
        )
    if spec.dynamic:
        raise ConfigError(
            f"the quantizer asks for dynamic quantization at {source.name!r}; brecq learns fixed step sizes: "
            "configure the quantizer for static quantization"
        )
    range = IntRange(spec.low, spec.high)
    if of_layers and all(reader.args[1] is node for reader in node.users):
        return WeightFakeQuantize(range, spec.qscheme, spec.axis or 0)
    if spec.per_channel:
        raise ConfigError(
            f"the quantizer asks for a scale per channel at activation {source.name!r}; brecq learns one per tensor"
        )
    module = ActivationFakeQuantize(range, spec.qscheme, dtype=spec.dtype)
    module.divides = spec.divides
    if spec.fixed is not None:
        module.fix(*spec.fixed)
    return module


def _share_weight_quantizers(graph: GraphModule) -> None:
    """One quantizer for each weight, however many layers read it."""
    owners: dict[str, str] = {}
    for node in graph.graph.nodes:
        if isinstance(fake_quantize_node(graph, node), WeightFakeQuantize):
            weight = str(node.args[0].target)
            node.target = owners.setdefault(weight, str(node.target))


def _share_with_tables(graph: GraphModule) -> None:
    """Embeddings whose table is also a layer's weight read it quantized: it is one tensor, and stored once."""
    quantizers = {
        str(node.args[0].target): node
        for node in reversed(graph.graph.nodes)
        if isinstance(fake_quantize_node(graph, node), WeightFakeQuantize)
    }
    for node in list(graph.graph.nodes):
        table: Any = node.args[0] if node.target is ops.aten.embedding.default else None
        if table is None or table.op != "get_attr" or str(table.target) not in quantizers:
            continue
        with graph.graph.inserting_before(node):
            shared = graph.graph.call_module(str(quantizers[str(table.target)].target), (table,))
        shared.meta["val"] = table.meta.get("val")
        node.args = (shared, *node.args[1:])


def _add_bias_quantizers(graph: GraphModule) -> None:
    for layer in list(graph.graph.nodes):
        bias = layer.args[2] if ops.kind(layer) and len(layer.args) > 2 else None
        if not isinstance(bias, Node) or resolve(bias).op != "get_attr":
            continue
        weight = fake_quantize_node(graph, layer.args[1])
        if not isinstance(weight, WeightFakeQuantize) or not weight.enabled:
            continue
        inputs = input_quantizer(graph, layer)
        if weight.per_channel and not _is_per_output(graph, layer, weight.ch_axis):
            inputs = None  # scales of inputs, or shared between groups: a bias element has no step of its own
        name = f"{str(bias.target).replace('.', '_')}_fake_quantize"
        while hasattr(graph, name):
            name += "_"
        graph.add_submodule(name, BiasFakeQuantize(inputs, weight))
        with graph.graph.inserting_before(layer):
            node = graph.graph.call_module(name, (bias,))
        node.meta["val"] = bias.meta.get("val")
        layer.args = (*layer.args[:2], node, *layer.args[3:])


def _is_per_output(graph: GraphModule, layer: Node, axis: int) -> bool:
    """True if the weight's `axis` counts the layer's outputs, one by one."""
    weight = get_tensor(graph, str(resolve(layer.args[1]).target))  # type: ignore[arg-type]
    return axis == output_axis(layer) and weight.shape[axis] == layer.args[2].meta["val"].numel()  # type: ignore[union-attr]


__all__ = ["fake_quantize_node", "grid_of", "input_quantizer", "prepare"]
