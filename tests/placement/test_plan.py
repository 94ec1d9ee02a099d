"""Placement: which tensors and layers are quantized, network by network."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from brecq.capture.export import capture
from brecq.config import LayerRule, QuantConfig
from brecq.effects import without_effect
from brecq.errors import ConfigError
from brecq.graph.reach import activation_end
from brecq.placement.plan import plan
from brecq.placement.prepare import fake_quantize_node, prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.quant.fake_quant import ActivationFakeQuantize, WeightFakeQuantize

# Bits of each quantized tensor, by the operator that makes it, at W4A3 with 8 bits first and last.
OUTPUT = {
    # conv2d_2, _4, _6 and _7 feed an addition: not quantized before it
    "ResNet": {
        "x": 8, "relu": 3, "relu_1": 3, "relu_2": 3, "relu_3": 3, "relu_4": 3, "relu_5": 3, "relu_6": 3,
        "adaptive_avg_pool2d": 8,
    },
    # conv2d_6 ends a block without a skip, and the next block reads it: quantized though it feeds an addition too
    "MobileNet": {
        "x": 8, "hardtanh": 3, "hardtanh_1": 3, "hardtanh_2": 3, "add": 3, "hardtanh_3": 3, "hardtanh_4": 3,
        "conv2d_6": 3, "hardtanh_5": 3, "hardtanh_6": 3, "add_1": 3, "mean": 8,
    },
    "SENet": {
        "x": 8, "silu": 3, "mul": 3, "mean": 3, "relu": 3, "sigmoid_1": 3, "mul_1": 3, "add": 3, "mean_1": 8,
    },
    "ConcatNet": {"x": 8, "relu": 3, "relu_1": 3, "relu_2": 3, "relu_3": 3, "mean": 8},
    # the stream of residual additions is read by layer norms only: it stays in float
    "ViT": {
        "x": 8, "conv2d": 3,
        "layer_norm": 3, "linear": 3, "scaled_dot_product_attention": 3, "layer_norm_1": 3, "gelu": 3,
        "layer_norm_2": 3, "linear_4": 3, "scaled_dot_product_attention_1": 3, "layer_norm_3": 3, "gelu_1": 3,
        "layer_norm_4": 8,
    },
    "TwoBranch": {
        "x": 8, "y": 8, "relu": 3, "relu_1": 3, "mean": 8, "relu_2": 3, "relu_3": 3, "mean_1": 8,
    },
    "Functional": {"x": 8, "relu": 3, "relu_1": 3, "relu_2": 3, "relu_3": 3, "relu_4": 3, "mean": 8},
    "Signal": {"x": 8, "relu": 3, "relu_1": 3, "relu_2": 8},
}  # fmt: skip

# The same for each tensor that enters a layer.
INPUT = {
    "ResNet": {
        "x": 8, "relu": 3, "relu_1": 3, "relu_2": 3, "relu_3": 3, "relu_4": 3, "relu_5": 3, "flatten": 8,
    },
    "MobileNet": {
        "x": 8, "hardtanh": 3, "hardtanh_1": 3, "hardtanh_2": 3, "add": 3, "hardtanh_3": 3, "hardtanh_4": 3,
        "conv2d_6": 3, "hardtanh_5": 3, "hardtanh_6": 3, "mean": 8,
    },
    "SENet": {"x": 8, "silu": 3, "mean": 3, "relu": 3, "mul_1": 3, "mean_1": 8},
    "ConcatNet": {"x": 8, "relu": 3, "max_pool2d": 3, "mean": 8},
    "ViT": {
        "x": 8, "layer_norm": 3, "reshape_1": 3, "layer_norm_1": 3, "gelu": 3,
        "layer_norm_2": 3, "reshape_3": 3, "layer_norm_3": 3, "gelu_1": 3, "select": 8,
    },
    "TwoBranch": {"x": 8, "y": 8, "relu": 3, "relu_2": 3, "cat": 8},
}  # fmt: skip

WEIGHTS = {
    "ResNet": {
        "conv1": 8, "layer1.0.conv1": 4, "layer1.0.conv2": 4, "layer1.1.conv1": 4, "layer1.1.conv2": 4,
        "layer2.0.conv1": 4, "layer2.0.conv2": 4, "layer2.0.downsample.0": 4, "fc": 8,
    },
    # the class token is expanded to the batch size of the input: that makes no later layer a first one
    "ViT": {
        "patch": 8, "blocks.0.attn.qkv": 4, "blocks.0.attn.proj": 4, "blocks.0.fc1": 4, "blocks.0.fc2": 4,
        "blocks.1.attn.qkv": 4, "blocks.1.attn.proj": 4, "blocks.1.fc1": 4, "blocks.1.fc2": 4, "head": 8,
    },
    "TwoBranch": {"left.0": 8, "left.2": 4, "right.0": 8, "right.2": 4, "head": 8},
    # three outputs, made by one head
    "FPN": {
        "body.0.0": 8, "body.1.0": 4, "body.2.0": 4, "lateral.0": 4, "lateral.1": 4, "lateral.2": 4,
        "smooth.0": 4, "head": 8, "smooth.1": 4, "head#2": 8, "smooth.2": 4, "head#3": 8,
    },
    "Functional": {"w0": 8, "a1": 4, "a2": 4, "b1": 4, "b2": 4, "fc": 8},
    "Signal": {"down": 8, "depthwise": 4, "up": 4, "out": 8},
    "Standardized": {"stem": 8, "conv": 4, "head": 8},
}  # fmt: skip


def config(**changes: object) -> QuantConfig:
    """W4A3; what first layers put out is as `OUTPUT` says, unless a test asks for more bits."""
    return QuantConfig(**{"weights": 4, "activations": 3, "first_last_outputs": False, **changes})


def quantized(graph: GraphModule) -> dict[str, int]:
    """Bits of the quantized tensors of a prepared graph, numbers of additions, products, views made small."""
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    for node in graph.graph.nodes:
        kind = node.name.rstrip("0123456789").rstrip("_")
        names[node.name] = node.name
        if kind in ("add", "mul", "view") and node.target.__name__.split(".")[1] in ("Tensor", "default"):
            if kind == "view" and not any(fake_quantize_node(graph, user) for user in node.users):
                continue
            if kind == "add" and sum(bool(arg.meta) for arg in node.all_input_nodes if arg.op != "get_attr") < 2:
                continue
            number = counts.get(kind, 0)
            counts[kind] = number + 1
            names[node.name] = f"{kind}_{number}" if number else kind
    found = {}
    for node in graph.graph.nodes:
        module = fake_quantize_node(graph, node)
        if isinstance(module, ActivationFakeQuantize):
            found[names[node.args[0].name]] = module.range.bits
    return found


def weights(graph: GraphModule, config: QuantConfig) -> dict[str, int]:
    placement = plan(graph, config)
    return {name: placement.weight_bits[node] for node, name in placement.layers.items()}


@pytest.mark.parametrize("name", OUTPUT)
def test_output_placement(captured, name: str) -> None:
    graph = prepare(captured(name), BrecqQuantizer(config()))
    assert quantized(graph) == OUTPUT[name]


class Decoded(nn.Module):
    """Decodes boxes (by exp, or as means of distributions) and scores, and resizes a mask, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.sizes, self.scores = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 5, 1)
        self.sides, self.mean, self.mask = nn.Conv2d(8, 16, 1), nn.Conv2d(4, 1, 1, bias=False), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x).relu()
        sides = self.sides(x).flatten(2)
        sides = self.mean(sides.unflatten(1, (4, 4)).transpose(1, 2).softmax(1))[:, 0]
        boxes = torch.cat([self.sizes(x).exp() * 8, self.scores(x).sigmoid()], 1).flatten(2)
        return torch.cat([sides * 8, boxes], 1), F.interpolate(self.mask(x), scale_factor=2, mode="bilinear")


class Pooled(nn.Module):
    """Scores are the means of the last layer's maps, as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.stem(x).relu()).relu().mean((2, 3))


@pytest.mark.parametrize(
    ("network", "expected"),
    [(Decoded, {"x": 8, "relu": 8, "softmax": 8}), (Pooled, {"x": 8, "relu": 8, "relu_1": 3})],
)
def test_what_only_outputs_are_made_of_stays_float(network: type[nn.Module], expected: dict[str, int]) -> None:
    graph = capture(network().eval(), (torch.randn(2, 3, 8, 8),))
    assert quantized(prepare(graph, BrecqQuantizer(config()))) == expected


@pytest.mark.parametrize("name", INPUT)
def test_input_placement(captured, name: str) -> None:
    graph = prepare(captured(name), BrecqQuantizer(config(placement="input")))
    assert quantized(graph) == INPUT[name]


@pytest.mark.parametrize("placement", ["output", "input"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_first_and_last_layers_have_8_bits(captured, name: str, placement: str) -> None:
    assert weights(captured(name), config(placement=placement)) == WEIGHTS[name]


@pytest.mark.parametrize(
    ("name", "wider"),
    [
        ("ResNet", {"relu", "relu_6"}),  # the stem's output, which the shortcut reads too; what is pooled in the end
        ("MobileNet", {"hardtanh", "add_1"}),
        ("SENet", {"silu", "add"}),
        ("Signal", {"relu"}),  # the last layer reads its input as it is: that has 8 bits anyway
        ("ViT", set()),  # no layer reads what the patches become without more; tokens are picked, not pooled
    ],
)
def test_outputs_of_first_layers_and_pooled_inputs_of_last_ones(captured, name: str, wider: set[str]) -> None:
    graph = prepare(captured(name), BrecqQuantizer(config(first_last_outputs=True)))
    assert quantized(graph) == {**OUTPUT[name], **dict.fromkeys(wider, 8)}


def test_a_rule_has_the_last_word_on_what_a_first_layer_puts_out(captured) -> None:
    rules = (LayerRule("layer1.0.conv1", activations=5),)
    graph = prepare(captured("ResNet"), BrecqQuantizer(config(first_last_outputs=True, rules=rules)))
    assert quantized(graph) == {**OUTPUT["ResNet"], "relu": 5, "relu_6": 8}


@pytest.mark.parametrize("bits", [None, 3])
def test_outputs_never_get_fewer_bits_than_others(captured, bits: int | None) -> None:
    wider = config(first_last=bits, first_last_outputs=True)
    narrow = config(first_last=bits, first_last_outputs=False)
    found = [quantized(prepare(captured("ResNet"), BrecqQuantizer(each))) for each in (wider, narrow)]
    assert found[0] == found[1]
    assert "first_last_outputs" in without_effect(wider)


def test_first_and_last_like_all_others(captured) -> None:
    graph = captured("ResNet")
    assert set(weights(graph, config(first_last=None)).values()) == {4}
    graph = prepare(graph, BrecqQuantizer(config(first_last=None)))
    assert set(quantized(graph).values()) == {3}


def test_float_weights_and_float_activations_stay_float(captured) -> None:
    graph = captured("ResNet")
    assert set(weights(graph, config(weights=32)).values()) == {32}
    assert plan(graph, config(activations=32)).tensors == {}
    assert plan(graph, config(activations=32, placement="input")).edges == {}


def test_rules_last_match_wins_and_beats_first_and_last(captured) -> None:
    rules = (LayerRule("layer1.*", weights=2), LayerRule("*.conv2", weights=6), LayerRule("conv1", weights=3))
    found = weights(captured("ResNet"), config(rules=rules))
    changed = {"conv1": 3, "layer1.0.conv1": 2, "layer1.0.conv2": 6, "layer1.1.conv1": 2, "layer1.1.conv2": 6,
               "layer2.0.conv2": 6}  # fmt: skip
    assert found == {**WEIGHTS["ResNet"], **changed}


def test_rule_on_activations_sets_the_input_of_a_layer(captured) -> None:
    rules = (LayerRule("layer1.0.conv2", activations=7),)
    for placement, reference in (("output", OUTPUT), ("input", INPUT)):
        graph = prepare(captured("ResNet"), BrecqQuantizer(config(rules=rules, placement=placement)))
        assert quantized(graph) == {**reference["ResNet"], "relu_1": 7}


def test_a_tensor_that_two_layers_read_has_the_wider_width(captured) -> None:
    rules = (LayerRule("layer2.0.downsample.0", activations=6),)
    for placement in ("output", "input"):
        graph = prepare(captured("ResNet"), BrecqQuantizer(config(rules=rules, placement=placement)))
        assert quantized(graph)["relu_4"] == 6


def test_float_layer(captured) -> None:
    rules = (LayerRule.parse("layer1.0.conv2", "float"),)
    graph = prepare(captured("ResNet"), BrecqQuantizer(config(rules=rules)))
    expected: Mapping[str, int] = {k: v for k, v in OUTPUT["ResNet"].items() if k != "relu_1"}
    assert quantized(graph) == expected
    layer = next(node for node in graph.graph.nodes if node.name == "conv2d_2")
    assert [source.op for source in layer.all_input_nodes] == ["call_function", "get_attr", "get_attr"]


@pytest.mark.parametrize(("name", "parts"), [("ConcatNet", {"relu_1", "relu_2"}), ("TwoBranch", {"mean", "mean_1"})])
def test_a_concatenation_in_front_of_a_layer_has_one_quantizer(captured, name: str, parts: set[str]) -> None:
    graph = prepare(captured(name), BrecqQuantizer(config()))
    modules: dict[object, set[str]] = {}
    for node in graph.graph.nodes:
        module = fake_quantize_node(graph, node)
        if isinstance(module, ActivationFakeQuantize):
            modules.setdefault(module, set()).add(node.args[0].name)
    assert [names for names in modules.values() if len(names) > 1] == [parts]


def test_layers_that_read_one_tensor_share_its_quantizer(captured) -> None:
    graph = prepare(captured("ResNet"), BrecqQuantizer(config(placement="input")))
    first, second = (n for n in graph.graph.nodes if n.name in ("conv2d_5", "conv2d_7"))
    assert fake_quantize_node(graph, first.args[0]) is fake_quantize_node(graph, second.args[0])


def test_shared_weights_share_their_quantizer(captured) -> None:
    graph = prepare(captured("Recurrent"), BrecqQuantizer(config()))
    layers = [node for node in graph.graph.nodes if node.name in ("conv2d_1", "conv2d_2", "conv2d_3")]
    modules = {fake_quantize_node(graph, node.args[1]) for node in layers}
    assert len(modules) == 1
    assert isinstance(modules.pop(), WeightFakeQuantize)


@pytest.mark.parametrize(
    ("name", "layer", "axis"), [("UNet", "up1", 1), ("Signal", "up", 1), ("Signal", "depthwise", 0)]
)
def test_weights_are_quantized_per_output_channel(captured, name: str, layer: str, axis: int) -> None:
    quantizer = BrecqQuantizer(config())
    graph = prepare(captured(name), quantizer)
    assert quantizer.placement is not None
    node = next(node for node, found in quantizer.placement.layers.items() if found == layer)
    node = next(n for n in graph.graph.nodes if n.name == node.name)
    assert fake_quantize_node(graph, node.args[1]).ch_axis == axis


def test_schemes(captured) -> None:
    def symmetric(**changes: object) -> tuple[set[bool], set[bool]]:
        graph = prepare(captured("ResNet"), BrecqQuantizer(config(**changes)))
        modules = [module for module in graph.modules() if isinstance(module, WeightFakeQuantize)]
        activations = [module for module in graph.modules() if isinstance(module, ActivationFakeQuantize)]
        assert {m.range.bits == 8 for m in modules} == {True, False}
        return {(m.symmetric) == (m.range.bits == 8) for m in modules}, {m.symmetric for m in activations}

    assert symmetric() == ({True}, {False})  # auto: symmetric at 8 bits, asymmetric below
    assert symmetric(weight_scheme="symmetric", activation_scheme="symmetric") == ({True, False}, {True})


def test_activation_end_takes_all_of_a_swish(captured) -> None:
    graph = captured("SENet")
    conv = next(node for node in graph.graph.nodes if node.name == "conv2d_1")
    end = activation_end(conv)
    assert end.target.__name__ == "mul.Tensor"
    assert [source.name for source in end.all_input_nodes] == ["conv2d_1", "sigmoid"]


def test_a_rule_that_matches_nothing_is_an_error(captured) -> None:
    with pytest.raises(ConfigError, match=r"no layer matches 'layer9\.\*'; there are conv1, layer1\.0\.conv1"):
        plan(captured("ResNet"), config(rules=(LayerRule("layer9.*", weights=8),)))
    with pytest.raises(ConfigError, match=r"no layer matches 'layer1'; .*; 'layer1\.\*' is all of layer1"):
        plan(captured("ResNet"), config(rules=(LayerRule("layer1", weights=8),)))


def test_a_network_without_layers_is_an_error(networks) -> None:
    import torch

    from brecq.capture.export import capture

    with pytest.raises(ConfigError, match="nothing to quantize"):
        plan(capture(torch.nn.ReLU(), (torch.randn(2, 3),)), config())
