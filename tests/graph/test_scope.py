"""The quantization scope says for every operator what is quantized, or why it is not."""

from __future__ import annotations

from brecq.config import LayerRule, QuantConfig
from brecq.graph.partition import partition
from brecq.graph.placement import BrecqQuantizer
from brecq.graph.prepare import prepare
from brecq.graph.scope import scope
from brecq.report import ScopeEntry, summarize


def entries(captured, name: str, **changes: object) -> dict[str, ScopeEntry]:
    config = QuantConfig(**{"weights": 4, "activations": 4, **changes})
    graph = prepare(captured(name), BrecqQuantizer(config))
    found = scope(graph, partition(graph))
    assert len({entry.op for entry in found}) == len(found)
    return {entry.layer if entry.weights else entry.op: entry for entry in found}


def test_layers(captured) -> None:
    found = entries(captured, "ResNet")
    entry = found["layer1.0.conv1"]
    assert (entry.kind, entry.block, entry.reason) == ("conv2d", "layer1.0", "")
    assert entry.weights.startswith("4 bit asymmetric")
    assert entry.inputs.startswith("4 bit asymmetric")
    assert found["conv1"].weights.startswith("8 bit symmetric")
    assert found["conv1"].inputs.startswith("8 bit asymmetric")
    assert found["fc"].output == "float"  # the network's output
    assert [entry.layer for entry in found.values() if entry.weights] == [
        "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "layer2.0.conv1",
        "layer2.0.conv2", "layer2.0.downsample.0", "fc",
    ]  # fmt: skip


def test_other_operators_and_reasons(captured) -> None:
    found = entries(captured, "ViT")
    attention = found["scaled_dot_product_attention"]
    assert (attention.weights, attention.block) == ("", "blocks.0")
    assert attention.inputs.startswith("4 bit")
    assert attention.reason == "a product of two activations, no weight"
    assert found["layer_norm"].reason == "normalization"
    assert found["layer_norm"].output.startswith("4 bit")
    assert "view" not in {entry.kind for entry in found.values()}  # data movement computes nothing


def test_reasons_of_float_layers(captured) -> None:
    rules = (LayerRule.parse("layer1.0.conv1", "float"), LayerRule("layer1.1.conv1", activations=32))
    found = entries(captured, "ResNet", rules=rules)
    float_layer = found["layer1.0.conv1"]
    assert (float_layer.weights, float_layer.reason) == ("float", "32 bits asked for")
    half = found["layer1.1.conv1"]
    assert half.weights.startswith("4 bit")
    assert (half.inputs, half.reason) == ("float", "activations: 32 bits asked for")


def test_a_summary_counts_layers_and_reasons(captured) -> None:
    rules = (LayerRule.parse("layer1.0.conv1", "float"),)
    config = QuantConfig(weights=4, activations=4, rules=rules)
    graph = prepare(captured("ResNet"), BrecqQuantizer(config))
    counts = summarize(scope(graph, partition(graph)))
    assert sorted(counts["weights"].values()) == [1, 2, 6]
    assert counts["float"]["conv2d: 32 bits asked for"] == 1
