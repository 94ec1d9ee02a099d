"""Prepare: fake-quantizers where a quantizer asked for them, that do nothing until they are told to."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

import brecq
from brecq.capture.export import capture
from brecq.config import QuantConfig, Recipe
from brecq.converted.grids import QUANTIZE
from brecq.errors import ConfigError
from brecq.graph import ops
from brecq.placement.prepare import fake_quantize_node, grid_of, input_quantizer, prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.quant.fake_quant import ActivationFakeQuantize, BiasFakeQuantize, Mode, WeightFakeQuantize, set_mode
from brecq.reconstruct.learnables import learnables

EVERYTHING = ["ResNet", "MobileNet", "SENet", "ConcatNet", "ViT", "UNet", "TwoBranch", "FPN", "Signal", "Recurrent"]


class Convolutions(Quantizer):
    """Annotates inputs and weights of convolutions with given specs."""

    def __init__(self, inputs: QuantizationSpec | None, weights: QuantizationSpec | None) -> None:
        self.inputs, self.weights = inputs, weights

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if ops.kind(node) == "conv2d":
                specs = {node.args[0]: self.inputs, node.args[1]: self.weights}
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map={k: v for k, v in specs.items() if v is not None}, _annotated=True
                )
        return model

    def validate(self, model: GraphModule) -> None:
        pass


def spec(observer: type, **changes: object) -> QuantizationSpec:
    values = {"dtype": torch.uint8, "quant_min": 0, "quant_max": 15, "qscheme": torch.per_tensor_affine, **changes}
    return QuantizationSpec(observer_or_fake_quant_ctr=observer, **values)


@pytest.mark.parametrize("placement", ["output", "input"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_changes_nothing_in_float_mode(captured, networks: ModuleType, name: str, placement: str) -> None:
    inputs = networks.inputs(networks.build(getattr(networks, name)), samples=3)
    graph = captured(name)
    expected = tree_leaves(graph(*inputs))
    prepared = prepare(graph, BrecqQuantizer(QuantConfig(placement=placement)))
    found = tree_leaves(prepared(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["ResNet", "ConcatNet", "UNet", "ViT"])
def test_every_bias_behind_a_quantized_input_is_quantized_with_the_product_of_the_steps(captured, name: str) -> None:
    graph = prepare(captured(name), BrecqQuantizer(QuantConfig()))
    layers = [node for node in graph.graph.nodes if ops.kind(node)]
    for layer in layers:
        bias = fake_quantize_node(graph, layer.args[2])
        assert isinstance(bias, BiasFakeQuantize), layer.name
        weight = fake_quantize_node(graph, layer.args[1])
        assert bias.sources == (input_quantizer(graph, layer), weight)
        assert isinstance(weight, WeightFakeQuantize)


def test_biases_stay_float_where_the_input_is_float(captured) -> None:
    graph = prepare(captured("ResNet"), BrecqQuantizer(QuantConfig(activations=32)))
    modules = list(graph.modules())
    assert sum(isinstance(module, WeightFakeQuantize) for module in modules) == 9
    assert not any(isinstance(module, ActivationFakeQuantize) for module in modules)
    assert {module.enabled for module in modules if isinstance(module, BiasFakeQuantize)} == {False}


def test_a_grouped_transposed_convolution_keeps_its_bias_in_float(captured) -> None:
    graph = prepare(captured("Signal"), BrecqQuantizer(QuantConfig()))
    layer = next(node for node in graph.graph.nodes if ops.kind(node) == "conv_transpose1d")
    assert not fake_quantize_node(graph, layer.args[2]).enabled  # one weight step for the outputs of both groups


def test_the_input_quantizer_is_seen_through_pooling_and_concatenation(captured) -> None:
    graph = prepare(captured("ConcatNet"), BrecqQuantizer(QuantConfig()))
    fuse = next(node for node in graph.graph.nodes if node.name == "conv2d_3")
    left = next(node for node in graph.graph.nodes if node.name == "relu_1")
    assert input_quantizer(graph, fuse) is fake_quantize_node(graph, next(iter(left.users)))


def test_a_concatenation_of_two_grids_is_on_neither(captured) -> None:
    graph = prepare(captured("ConcatNet"), BrecqQuantizer(QuantConfig()))
    right = next(node for node in graph.graph.nodes if node.name == "relu_2")
    quantizer = next(iter(right.users))
    graph.other = ActivationFakeQuantize(fake_quantize_node(graph, quantizer).range, torch.per_tensor_affine)
    quantizer.target = "other"
    assert input_quantizer(graph, next(node for node in graph.graph.nodes if node.name == "conv2d_3")) is None


@pytest.mark.parametrize("name", ["ResNet", "MobileNet", "Functional", "UNet"])
def test_the_x86_quantizer_of_torchao(captured, networks: ModuleType, name: str) -> None:
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    graph = prepare(captured(name), quantizer)
    found = [fake_quantize_node(graph, node) for node in graph.graph.nodes]
    weights = [module for module in found if isinstance(module, WeightFakeQuantize)]
    activations = [module for module in found if isinstance(module, ActivationFakeQuantize)]
    # transposed convolutions are not among what this back end quantizes
    layers = [node for node in graph.graph.nodes if ops.kind(node) in ("conv2d", "linear")]
    assert len(weights) == len(layers)
    assert {(m.quant_min, m.quant_max, m.qscheme) for m in weights} == {(-128, 127, torch.per_channel_symmetric)}
    assert {m.dtype for m in activations} == {torch.uint8}
    set_mode(graph, Mode.OBSERVE)
    graph(*networks.inputs(networks.build(getattr(networks, name)), samples=4))


def test_observers_of_other_quantizers_become_ours(captured) -> None:
    inputs = spec(HistogramObserver)
    weights = spec(
        PerChannelMinMaxObserver, dtype=torch.int8, quant_min=-7, quant_max=7, qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )  # fmt: skip
    graph = prepare(captured("ResNet"), Convolutions(inputs, weights))
    layer = next(node for node in graph.graph.nodes if ops.kind(node))
    found, weight = fake_quantize_node(graph, layer.args[0]), fake_quantize_node(graph, layer.args[1])
    assert (found.range.low, found.range.high, found.qscheme) == (0, 15, torch.per_tensor_affine)
    assert (weight.range.low, weight.range.high, weight.symmetric, weight.ch_axis) == (-7, 7, True, 0)
    assert fake_quantize_node(graph, next(n for n in graph.graph.nodes if n.name == "linear").args[0]) is None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (spec(MinMaxObserver, is_dynamic=True), "dynamic quantization at 'x'.*static"),
        (spec(MinMaxObserver, dtype=torch.int32, quant_min=0, quant_max=9), r"torch\.int32 at 'x'"),
        (
            spec(PerChannelMinMaxObserver, qscheme=torch.per_channel_affine, ch_axis=1),
            "scale per channel at activation 'x'",
        ),
    ],
    ids=["dynamic", "int32", "per channel"],
)
def test_what_cannot_be_learned_is_an_error(captured, inputs: QuantizationSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(captured("ResNet"), Convolutions(inputs, None))


class Shared(Quantizer):
    """A fixed grid behind the first ReLU, a shared one on both inputs of each addition, int32 biases derived from the
    other two."""

    def annotate(self, model: GraphModule) -> GraphModule:
        nodes = [node for node in model.graph.nodes if node.op == "call_function"]
        relu = next(node for node in nodes if "relu" in node.name)
        fixed = FixedQParamsQuantizationSpec(torch.uint8, 1 / 64, 3, 0, 255, torch.per_tensor_affine)
        relu.meta["quantization_annotation"] = QuantizationAnnotation({}, fixed, _annotated=True)
        for node in nodes:
            inputs = {}
            if node.target is ops.aten.add.Tensor:
                first, second = node.args
                inputs = {first: spec(HistogramObserver), second: SharedQuantizationSpec((first, node))}
            elif ops.kind(node) == "linear":
                x, w, b = node.args
                eight = spec(MinMaxObserver, dtype=torch.int8, quant_min=-127, quant_max=127)
                derived = DerivedQuantizationSpec([(x, node), (w, node)], lambda _: None, torch.int32)
                inputs = {x: spec(HistogramObserver), w: eight, b: derived}
            if inputs:
                node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, None, _annotated=True)
        return model

    def validate(self, model: GraphModule) -> None:
        self.validated = True


def test_fixed_shared_and_derived_specs(captured, networks: ModuleType) -> None:
    quantizer = Shared()
    graph = prepare(captured("ResNet"), quantizer)
    assert quantizer.validated
    nodes = list(graph.graph.nodes)
    relu = next(node for node in nodes if node.op == "call_function" and "relu" in node.name)
    fixed = fake_quantize_node(graph, next(iter(relu.users)))
    assert (fixed.scale.item(), fixed.zero_point.item(), fixed.fixed) == (1 / 64, 3, True)
    for node in nodes:
        if node.target is ops.aten.add.Tensor:
            assert fake_quantize_node(graph, node.args[0]) is fake_quantize_node(graph, node.args[1]) is not None
    linear = next(node for node in nodes if ops.kind(node) == "linear")
    quantizers = [fake_quantize_node(graph, argument) for argument in linear.args]
    assert [type(q) for q in quantizers] == [ActivationFakeQuantize, WeightFakeQuantize, BiasFakeQuantize]
    assert quantizers[2].sources == tuple(quantizers[:2])
    named = learnables(graph).activations
    assert fixed not in named.values()
    assert quantizers[0] in named.values()
    model = networks.build(networks.ResNet)
    config = QuantConfig(recipe=Recipe(steps=2))
    with torch.enable_grad():
        result = brecq.quantize(model, networks.inputs(model, samples=8), config, quantizer=Shared())
    steps = {node.args[1] for node in result.converted.graph.nodes if node.target is QUANTIZE and node.args[2] == 3}
    assert 1 / 64 in steps


class Token(nn.Module):
    """Joins what a layer makes with a constant that capture computes."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.first, self.second = nn.Parameter(torch.randn(8)), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.reshape(1, 2, 4).expand(len(x), -1, -1)
        return self.second(torch.cat([token, self.first(x).relu()], 1))


def test_constants_that_capture_computed_are_quantized_with_what_they_are_joined_with() -> None:
    quantizer = BrecqQuantizer(QuantConfig(8, 8))
    prepared = prepare(capture(Token(), (torch.randn(2, 3, 4),)), quantizer)
    assert quantizer.placement is not None
    (joined,) = [node for node in prepared.graph.nodes if node.target in ops.CONCAT]
    grids = [grid_of(prepared, part) for part in joined.args[0]]
    assert grids[0] is not None
    assert grids[0] is grids[1]
