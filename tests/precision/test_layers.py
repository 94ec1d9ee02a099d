"""Layers and knobs of prepared graphs."""

from __future__ import annotations

import dataclasses
import json
from types import ModuleType

from brecq.capture.export import capture
from brecq.config import LayerRule, QuantConfig
from brecq.partition.cut import partition
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.plain import build
from brecq.precision.layers import Anatomy, Layer, dissect


def anatomy(networks: ModuleType, name: str, config: QuantConfig | None = None, inputs=(4, 8)) -> Anatomy:
    model = networks.build(getattr(networks, name))
    quantizer = BrecqQuantizer(config or QuantConfig())
    prepared = prepare(capture(model, networks.inputs(model)), quantizer)
    return dissect(prepared, partition(prepared), quantizer.placement, (2, 4, 8), inputs)


def test_a_knob_for_each_weight_and_each_tensor(networks: ModuleType) -> None:
    found = anatomy(networks, "ResNet")
    bits = {knob.name: knob.bits for knob in found.knobs}
    assert bits["conv1/weight"] == bits["fc/weight"] == (8,)  # the first and the last layer are settled
    assert bits["conv1/input"] == bits["fc/input"] == (8,)
    assert bits["layer1.0.conv1/weight"] == (2, 4, 8)
    assert bits["layer1.0.conv2/input"] == (4, 8)
    # the block's convolution and its shortcut read one tensor, which the residual addition of the stage made
    shared = next(knob for knob in found.knobs if "layer2.0.downsample.0" in knob.layers and knob.kind == "input")
    assert shared.layers == ("layer2.0.conv1", "layer2.0.downsample.0")
    assert found.layers[0].name == "conv1"


def test_layers_that_share_a_weight_have_one_knob(networks: ModuleType) -> None:
    found = anatomy(networks, "Recurrent")
    assert {knob.name: knob.layers for knob in found.knobs if knob.kind == "weight"} == {
        "stem/weight": ("stem",), "step/weight": ("step", "step#2", "step#3"), "head/weight": ("head",),
    }  # fmt: skip


def test_tensors_that_a_concatenation_joins_have_one_knob(networks: ModuleType) -> None:
    found = anatomy(networks, "ConcatNet")
    inputs = {knob.name: knob.layers for knob in found.knobs if knob.kind == "input"}
    assert inputs["fuse/input"] == ("fuse",)
    assert inputs["left/input"] == ("left", "right")


def test_rules_and_float_settle_a_width(networks: ModuleType) -> None:
    config = QuantConfig(
        first_last=None,
        rules=(
            LayerRule("layer1.0.*", weights=3),
            LayerRule("fc", 32, 32),
            LayerRule("layer2.0.conv2", activations=5),
        ),
    )
    bits = {knob.name: knob.bits for knob in anatomy(networks, "ResNet", config).knobs}
    assert bits["layer1.0.conv1/weight"] == bits["layer1.0.conv2/weight"] == (3,)
    assert bits["layer1.0.conv2/input"] == (4, 8)
    assert bits["layer2.0.conv2/input"] == (5,)
    assert bits["fc/weight"] == bits["fc/input"] == (32,)
    assert bits["conv1/weight"] == (2, 4, 8)
    fixed = anatomy(networks, "ResNet", QuantConfig(activations=6), inputs=None)
    assert {knob.bits for knob in fixed.knobs if knob.kind == "input"} == {(8,), (6,)}


def test_a_target_leaves_the_widths_that_its_kernels_take(networks: ModuleType) -> None:
    free = [knob for knob in anatomy(networks, "ResNet", QuantConfig(target="onnxruntime")).knobs if knob.free]
    assert {(knob.kind, knob.bits) for knob in free} == {("weight", (2, 4, 8)), ("input", (4, 8))}
    free = [knob for knob in anatomy(networks, "ResNet", QuantConfig(8, 8, target="tensorrt")).knobs if knob.free]
    assert {(knob.kind, knob.bits) for knob in free} == {("weight", (2, 4, 8))}  # INT8 activations alone


def test_shapes(networks: ModuleType) -> None:
    layers = {layer.name: layer for layer in anatomy(networks, "MobileNet").layers}
    depthwise = layers["features.2.conv.3"]
    assert (depthwise.kind, depthwise.groups, depthwise.stride, depthwise.kernel) == ("conv2d", 32, (2, 2), (3, 3))
    assert depthwise.input_shape == (32, 16, 16)
    assert depthwise.output_shape == (32, 8, 8)
    assert (depthwise.reduction, depthwise.positions, depthwise.channels) == (9, 64, 1)
    assert depthwise.macs == 32 * 64 * 9
    head = layers["classifier"]
    assert (head.kind, head.reduction, head.positions, head.channels, head.kernel) == ("linear", 12, 1, 10, ())
    up = {layer.name: layer for layer in anatomy(networks, "UNet").layers}["up2"]
    assert (up.kind, up.weight_shape, up.stride) == ("conv_transpose2d", (32, 16, 2, 2), (2, 2))
    assert (up.positions, up.channels, up.reduction) == (64, 16, 32)
    tokens = {layer.name: layer for layer in anatomy(networks, "ViT").layers}["blocks.0.fc1"]
    assert (tokens.positions, tokens.channels, tokens.reduction) == (17, 32, 16)


def test_a_layer_survives_json(networks: ModuleType) -> None:
    layer = dataclasses.replace(anatomy(networks, "ResNet").layers[1], weight_bytes={2: 5, 8: 17})
    assert build(Layer, json.loads(json.dumps(layer.to_dict())), "the layer") == layer
