"""Completion: which tensors it quantizes, and that it changes nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import brecq
from brecq import QuantResult
from brecq.converted.grids import QUANTIZE, grid_of
from brecq.converted.plan import float_operators
from brecq.deploy.complete import complete
from brecq.errors import CheckpointError, ExportError
from brecq.graph.integer import CLAMPS

Quantized = Callable[..., QuantResult]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("ResNet", ["layer1.0.conv2", "layer1.1.conv2", "layer2.0.conv2", "layer2.0.downsample.0"]),
        ("MobileNet", ["features.1.conv.6", "features.3.conv.6"]),  # features.2 has no skip connection
        ("SENet", ["stem", "expand", "se.expand", "project"]),  # swish and sigmoid follow convolutions
        ("ConcatNet", []),
        ("FPN", ["lateral.0", "lateral.1", "head", "head", "head"]),
        ("ViT", []),  # its additions are float: a layer norm reads them
        ("UNet", ["out"]),
    ],
)
def test_what_is_quantized_in_addition(quantized: Quantized, name: str, layers: list[str]) -> None:
    added = complete(quantized(name)).added
    assert [each.layer for each in added if each.op.startswith("conv")] == layers
    assert all((each.grid.low, each.grid.high) == (0, 255) for each in added)


def test_linear_outputs_on_request(quantized: Quantized) -> None:
    added = complete(quantized("ViT"), linear_outputs=True).added
    expected = ["blocks.0.attn.proj", "blocks.0.fc1", "blocks.0.fc2", "blocks.1.attn.proj", "blocks.1.fc1"]
    assert [each.layer for each in added] == [*expected, "blocks.1.fc2", "head"]


@pytest.mark.parametrize(
    ("name", "floats"),
    [
        ("ResNet", set()),
        ("ConcatNet", set()),
        ("UNet", {"conv_transpose2d"}),
        ("SENet", {"silu", "sigmoid", "mul"}),  # of a written-out swish; the gate's own product is an integer one
        ("ViT", {"add", "cat", "layer_norm", "gelu", "scaled_dot_product_attention"}),
    ],
)
def test_what_computes_in_float(quantized: Quantized, name: str, floats: set[str]) -> None:
    assert float_operators(complete(quantized(name)).graph) == floats


@pytest.mark.parametrize(("name", "activations"), [("ResNet", 8), ("MobileNet", 4), ("ConcatNet", 8)])
def test_folded_clamps_change_no_bit(networks: ModuleType, quantized: Quantized, name: str, activations: int) -> None:
    result = quantized(name, 4, activations)
    inputs = networks.inputs(networks.build(getattr(networks, name)), 8, seed=3)
    folded, kept = complete(result), complete(result, fold_clamps=False)
    with torch.no_grad():
        assert torch.equal(folded.graph(*inputs), kept.graph(*inputs))
    assert any(node.target in CLAMPS for node in kept.graph.graph.nodes)
    assert not any(node.target in CLAMPS for node in folded.graph.graph.nodes)


def test_a_clamp_narrows_the_codes(quantized: Quantized) -> None:
    """Tensors that a concatenation joins share a zero point, so a ReLU's lower end is not code 0."""
    completed = complete(quantized("FPN", 7, 6, activation_scheme="symmetric"))
    grids = [grid_of(node) for node in completed.graph.graph.nodes if node.target is QUANTIZE]
    assert all(0 <= grid.low <= grid.high <= 255 for grid in grids)
    assert {grid.high for grid in grids} >= {63, 255}  # six bits, and what completion added


def test_little_is_lost_by_completion(networks: ModuleType, quantized: Quantized) -> None:
    result = quantized("ResNet", 4, 8)
    x = networks.inputs(networks.build(networks.ResNet), 16, seed=3)[0]
    with torch.no_grad():
        expected, found = result.model(x), complete(result).graph(x)
    assert 0 < (found - expected).abs().max() < 0.02 * (expected.max() - expected.min())


def test_a_tensor_read_at_two_widths_leaves_its_layer_once(quantized: Quantized) -> None:
    """With quantizers at layers' inputs, a residual stream is read at 4 bits by a layer and at 8 by the addition."""
    graph = complete(quantized("ResNet", 4, 4, placement="input")).graph
    for node in graph.graph.nodes:
        if node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.add.Tensor):
            assert [user.target for user in node.users] == [QUANTIZE]


def test_a_loaded_result_is_completed_alike(networks: ModuleType, quantized: Quantized, tmp_path: Path) -> None:
    result = quantized("SENet", 6, 8)
    loaded = brecq.load(result.save(tmp_path / "out"))
    assert loaded.ranges == result.ranges
    x = networks.inputs(networks.build(networks.SENet), 4, seed=3)[0]
    with torch.no_grad():
        assert torch.equal(complete(loaded).graph(x), complete(result).graph(x))
    assert [each.grid for each in complete(loaded).added] == [each.grid for each in complete(result).added]


def test_without_ranges_the_remedy_is_named(quantized: Quantized) -> None:
    with pytest.raises(ExportError, match=r"conv2d in layer1\.0\.conv2 and 3 other tensors.*quantize again"):
        complete(dataclasses.replace(quantized("ResNet"), ranges=None))


def test_ranges_of_another_program_are_refused(quantized: Quantized) -> None:
    other = quantized("MobileNet").ranges
    with pytest.raises(CheckpointError, match=r"operator \d+ .* does not fit"):
        complete(dataclasses.replace(quantized("ConcatNet"), ranges=other))


def test_weight_only_results_have_nothing_to_complete(quantized: Quantized) -> None:
    result = quantized("ResNet", 4, 32)
    assert result.ranges == []
    assert complete(result).added == ()
