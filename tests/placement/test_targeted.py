"""Placement for a target: all that its kernels read and write is quantized, at widths that they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

import brecq
from brecq import LayerRule, QuantConfig
from brecq.deploy.complete import complete
from brecq.errors import ConfigError
from brecq.placement.plan import plan
from brecq.placement.prepare import fake_quantize_node, grid_of, prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.quant.fake_quant import ActivationFakeQuantize, WeightFakeQuantize
from brecq.targets import load

aten = torch.ops.aten


def prepared(captured: Callable[[str], GraphModule], name: str, **config: Any) -> GraphModule:
    return prepare(captured(name), BrecqQuantizer(QuantConfig(**{"weights": 4, "activations": 8, **config})))


def widths(graph: GraphModule, target: Any) -> list[list[int]]:
    """Bits of what every operator of this kind reads (32 for float), and of what leaves it."""
    found = []
    for node in graph.graph.nodes:
        if node.target is target:
            grids = [grid_of(graph, source) for source in node.all_input_nodes[:2]]
            out = [fake_quantize_node(graph, user) for user in node.users]
            found.append([32 if grid is None else grid.range.bits for grid in [*grids, *out]])
    return found


def test_both_operands_of_an_addition_are_learned(captured: Callable[[str], GraphModule]) -> None:
    graph = prepared(captured, "ResNet", activations=4, target="onnxruntime")
    additions = widths(graph, aten.add.Tensor)
    assert additions
    for left, right, _ in additions:  # 8 bits are free where no layer reads the tensor
        assert sorted((left, right)) in ([4, 8], [8, 8])
    assert 32 in [bits for row in widths(prepared(captured, "ResNet", activations=4), aten.add.Tensor) for bits in row]


def test_tensorrt_quantizes_the_residual_and_not_the_layer_that_it_is_added_to(
    captured: Callable[[str], GraphModule],
) -> None:
    graph = prepared(captured, "ResNet", target="tensorrt")
    for node in graph.graph.nodes:
        if node.target is aten.add.Tensor:
            floats = [source for source in node.all_input_nodes if grid_of(graph, source) is None]
            assert [source.target for source in floats] == [aten.conv2d.default]
    grids = [m for m in graph.modules() if isinstance(m, ActivationFakeQuantize)]
    assert {(m.dtype, m.range.low, m.range.high, m.symmetric) for m in grids} == {(torch.int8, -128, 127, True)}
    assert {m.symmetric for m in graph.modules() if isinstance(m, WeightFakeQuantize)} == {True}


def test_pooling_shares_the_grid_of_its_input_where_the_target_wants_it(
    captured: Callable[[str], GraphModule],
) -> None:
    apart, same = (prepared(captured, "ResNet", target=name) for name in ("onnxruntime", "litert"))
    for graph, shared in ((apart, False), (same, True)):
        (pool,) = [n for n in graph.graph.nodes if n.target is aten.adaptive_avg_pool2d.default]
        (behind,) = [fake_quantize_node(graph, user) for user in pool.users]
        assert (grid_of(graph, pool.args[0]) is behind) == shared


def test_the_networks_own_output_is_quantized_where_the_target_wants_it(
    captured: Callable[[str], GraphModule],
) -> None:
    for target, quantized in (("onnxruntime", False), ("litert", True)):
        graph = prepared(captured, "ResNet", target=target)
        output = next(node for node in graph.graph.nodes if node.op == "output")
        assert (grid_of(graph, output.all_input_nodes[0]) is not None) == quantized


def test_prescribed_grids_are_neither_searched_nor_learned(captured: Callable[[str], GraphModule]) -> None:
    graph = prepared(captured, "SENet", target="litert")
    gates = [n for n in graph.graph.nodes if n.target is aten.sigmoid.default]
    modules = [fake_quantize_node(graph, user) for gate in gates for user in gate.users]
    fixed = [m for m in modules if m is not None]
    assert fixed
    assert all(m.fixed and float(m.grid.scale) == 1 / 256 and float(m.grid.zero_point) == 0 for m in fixed)


def test_one_scale_in_all_where_a_kernel_takes_no_other(
    captured: Callable[[str], GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = load("cmsis-nn")
    kernels = tuple(replace(kernel, per_channel="linear" not in kernel.operators) for kernel in table.kernels)
    monkeypatch.setattr("brecq.config.quantization.load", lambda name: replace(table, kernels=kernels))
    graph = prepared(captured, "ResNet", target="cmsis-nn")
    for node in graph.graph.nodes:
        if node.target in (aten.linear.default, aten.conv2d.default):
            weight = fake_quantize_node(graph, node.args[1])
            assert weight.per_channel == (node.target is aten.conv2d.default)


def test_widths_that_no_kernel_takes_are_raised_and_said(captured: Callable[[str], GraphModule]) -> None:
    graph = captured("MobileNet")
    placement = plan(graph, QuantConfig(2, 8, target="executorch", first_last=None))
    kinds = {placement.layers[n]: placement.weight_bits[n] for n in placement.layers}
    assert set(kinds.values()) == {2}
    with pytest.raises(ConfigError, match=r"tensorrt computes no layer of this network at 4/4 bits"):
        plan(captured("MobileNet"), QuantConfig(4, 4, target="tensorrt"))
    # MobileNet's one linear layer is the last, at 8 bits: behind float inputs TensorRT takes it at 4 alone
    with pytest.raises(ConfigError, match=r"tensorrt would leave every layer in float \(.* at 8/float bits"):
        plan(captured("MobileNet"), QuantConfig(4, 32, target="tensorrt"))


def test_layers_without_a_kernel_stay_float_with_the_reason(captured: Callable[[str], GraphModule]) -> None:
    graph = captured("UNet")
    placement = plan(graph, QuantConfig(4, 8, target="executorch"))
    turned = [node for node in placement.layers if node.target is aten.conv_transpose2d.input]
    assert turned
    for node in turned:
        assert placement.weight_bits[node] == placement.input_bits[node] == 32
        assert "executorch has no kernel for conv_transpose2d" in placement.reasons[node]


def test_a_rule_that_the_target_cannot_keep_is_refused(captured: Callable[[str], GraphModule]) -> None:
    config = QuantConfig(4, 8, target="tensorrt", rules=(LayerRule("layer1.0.conv1", activations=4),))
    with pytest.raises(ConfigError, match=r"8 bits.*not 4/4 bits.*layer1\.0\.conv1"):
        plan(captured("ResNet"), config)


def test_a_quantizer_of_ones_own_leaves_no_room_for_a_target(networks: ModuleType) -> None:
    model = networks.build(networks.ResNet)
    config = QuantConfig(8, 8, target="onnxruntime")
    with pytest.raises(ConfigError, match="target and quantizer both decide"):
        brecq.quantize(model, networks.inputs(model, 4)[0], config, quantizer=BrecqQuantizer(QuantConfig()))


@pytest.mark.parametrize(("name", "target"), [("ResNet", "onnxruntime"), ("FPN", "litert"), ("ResNet", "tensorrt")])
def test_what_is_learned_is_what_runs(networks: ModuleType, name: str, target: str) -> None:
    """Nothing is left to complete, and the integer simulator computes what the fake-quantized network does."""
    model = networks.build(getattr(networks, name))
    x = networks.inputs(model, 16)[0]
    result = brecq.quantize(model, x, QuantConfig(4, 8, method="rtn", target=target))
    assert complete(result).added == ()
    y = networks.inputs(model, 8, seed=5)[0]
    found, expected = brecq.simulate(result)(y), result.model(y)
    if not isinstance(found, torch.Tensor):
        found, expected = (torch.cat([v.flatten() for v in d.values()]) for d in (found, expected))
    with torch.no_grad():
        assert (found - expected).abs().mean() < 1e-3 * (expected.max() - expected.min())


def test_signed_activations_have_zero_point_zero_everywhere(networks: ModuleType) -> None:
    """Without a target too, and in what completion adds."""
    from brecq.converted.grids import QUANTIZE
    from brecq.converted.grids import grid_of as grid

    model = networks.build(networks.ResNet)
    x = networks.inputs(model, 16)[0]
    result = brecq.quantize(model, x, QuantConfig(4, 8, method="rtn", activation_scheme="signed"))
    completed = complete(result)
    assert completed.added
    grids = [grid(node) for node in completed.graph.graph.nodes if node.target is QUANTIZE]
    assert {(g.zero_point, g.dtype) for g in grids} == {(0, torch.int8)}
    assert {g.low for g in grids} == {-128, 0}  # behind a ReLU its clamp is folded in
    with torch.no_grad():
        y, reference = networks.inputs(model, 8, seed=5)[0], model(x)
        error = (brecq.simulate(result)(y) - result.model(y)).abs().max()
        assert error < 0.02 * (reference.max() - reference.min())


@pytest.mark.parametrize("target", ["litert", "qualcomm"])
def test_sixteen_bits_are_those_of_all_that_the_kernels_need(
    captured: Callable[[str], GraphModule], target: str
) -> None:
    for name in ("ResNet", "MobileNet"):
        graph = prepared(captured, name, target=target, activations=16)
        found = [module for module in graph.modules() if isinstance(module, ActivationFakeQuantize)]
        assert {(each.range.bits, each.dtype) for each in found} == {(16, torch.int16)}
        assert {each.symmetric for each in found} == {target == "litert"}
        assert all(module.range.bits <= 8 for module in graph.modules() if isinstance(module, WeightFakeQuantize))


def test_one_layer_may_have_16_bits_where_kernels_mix_them(captured: Callable[[str], GraphModule]) -> None:
    rules = (LayerRule("layer1.1.conv1", activations=16),)
    placement = plan(captured("ResNet"), QuantConfig(4, 8, target="qualcomm", rules=rules))
    widths = sorted(placement.tensors.values())
    assert widths.count(16) == 1
    assert set(widths) == {8, 16}
