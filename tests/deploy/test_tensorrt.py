"""Files for TensorRT: they keep the rules that its documentation states, and compute what was measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, QuantResult
from brecq.errors import ConfigError, ExportError

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
lint = pytest.importorskip("brecq.deploy.tensorrt.lint", reason="needs the extra onnx").lint
numpy_helper = onnx.numpy_helper

Quantized = Callable[..., QuantResult]


@pytest.fixture(scope="module")
def files(networks: ModuleType, quantized: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    folder = tmp_path_factory.mktemp("tensorrt")

    @cache
    def get(name: str, weights: int = 8, activations: int = 8) -> tuple[QuantResult, Path]:
        result = quantized(name, weights, activations, target="tensorrt")
        file = folder / f"{name}{weights}{activations}.onnx"
        brecq.export(result, file, "tensorrt")
        return result, file

    return get


@pytest.mark.parametrize("name", ["ResNet", "ConcatNet", "ViT"])
def test_a_file_keeps_the_rules_and_computes_what_was_measured(
    networks: ModuleType, files: Callable[..., Any], name: str
) -> None:
    result, file = files(name)
    assert lint(onnx.load(file)) == []
    inputs = networks.inputs(networks.build(getattr(networks, name)), 8, seed=5)
    found = brecq.verify(result, file, inputs[0], format="tensorrt", bisect=True)
    assert found.failures == ()
    assert found.runtime == "ONNX Runtime (in place of TensorRT)"
    assert sum(tensor.differing for tensor in found.tensors) <= 2  # float additions
    assert found.quantized.mean < 0.2


class Shuffles(nn.Module):
    """Two units of a ShuffleNet: each passes half of its shuffled channels on and joins them with the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.units = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for unit in self.units:
            left, right = x.chunk(2, 1)
            joined = torch.cat([left, unit(right).relu()], 1)
            x = joined.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return self.out(x)


def test_shuffled_channels_are_quantized_where_layers_read_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = brecq.quantize(
        Shuffles().eval(), torch.randn(8, 3, 8, 8), QuantConfig(8, 8, method="rtn", target="tensorrt")
    )
    brecq.export(result, tmp_path / "m.onnx", "tensorrt")  # the linter finds nothing
    found = brecq.verify(result, tmp_path / "m.onnx", torch.randn(4, 3, 8, 8), format="tensorrt", bisect=True)
    assert found.as_expected, found.failures


def test_only_standard_operators_int8_and_float(files: Callable[..., Any]) -> None:
    model = onnx.load(files("ResNet")[1])
    kinds = {node.op_type for node in model.graph.node}
    assert kinds >= {"QuantizeLinear", "DequantizeLinear", "Conv", "Relu", "Add", "GlobalAveragePool", "MatMul"}
    assert not any(node.domain for node in model.graph.node)
    stored = {tensor.data_type for tensor in model.graph.initializer}
    assert stored <= {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_weights_alone_are_int4_in_blocks(networks: ModuleType, files: Callable[..., Any]) -> None:
    result, file = files("ViT", 4, 32)
    model = onnx.load(file)
    assert lint(model) == []
    blocks = [a.i for node in model.graph.node for a in node.attribute if a.name == "block_size"]
    assert len(blocks) >= 8
    fours = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT4]
    assert len(fours) >= 8
    (x,) = networks.inputs(networks.build(networks.ViT), 4, seed=5)
    found = brecq.verify(result, file, x, format="tensorrt")
    assert found.quantized.largest < 0.01  # float rounding


def test_a_fixed_batch(quantized: Quantized, tmp_path: Path) -> None:
    result = quantized("ConcatNet", 8, 8, target="tensorrt")
    brecq.export(result, tmp_path / "m.onnx", "tensorrt", batch=4)
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_value == 4
    with pytest.raises(ConfigError, match="batch is 0"):
        brecq.export(result, tmp_path / "n.onnx", "tensorrt", batch=0)


@pytest.mark.parametrize(
    ("weights", "activations", "config", "message"),
    [
        (
            4,
            8,
            {},
            r"zero points, TensorRT has none; TensorRT takes 8-bit .* 0; quantize with --target tensorrt or "
            "--weight-scheme symmetric --activation-scheme signed --activation-bits 8$",
        ),
        (
            4,
            8,
            {"activation_scheme": "signed"},
            r"none; quantize with --target tensorrt or --weight-scheme symmetric$",
        ),
        (8, 8, {}, "8-bit signed activations with zero point 0"),
        (8, 4, {"activation_scheme": "signed"}, "8-bit signed activations"),
    ],
)
def test_other_grids_are_refused_with_the_remedy(
    quantized: Quantized, tmp_path: Path, weights: int, activations: int, config: dict[str, str], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        brecq.export(quantized("ConcatNet", weights, activations, **config), tmp_path / "m.onnx", "tensorrt")
    assert not list(tmp_path.iterdir())


def node_of(model: Any, op: str, which: int = 0) -> Any:
    return [node for node in model.graph.node if node.op_type == op][which]


def own_constant(model: Any, node: Any, place: int, value: np.ndarray) -> None:
    """Give one input of a node a constant that no other reads."""
    name = f"{node.name}_own{place}"
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[place] = name


def shift_zero_point(model: Any) -> None:
    own_constant(model, node_of(model, "QuantizeLinear", 1), 2, np.array(3, np.int8))


def unsigned(model: Any) -> None:
    own_constant(model, node_of(model, "QuantizeLinear", 1), 2, np.array(0, np.uint8))


def negative_scale(model: Any) -> None:
    own_constant(model, node_of(model, "DequantizeLinear", 1), 1, np.array(-1, np.float32))


def scale_per_channel(model: Any) -> None:
    own_constant(model, node_of(model, "QuantizeLinear", 0), 1, np.ones(3, np.float32))


def codes_into_a_relu(model: Any) -> None:
    node_of(model, "Relu").input[0] = node_of(model, "QuantizeLinear").output[0]


def float_weight(model: Any) -> None:
    convolution = node_of(model, "Conv")
    own_constant(model, convolution, 1, np.ones((8, 3, 3, 3), np.float32))


def float_input(model: Any) -> None:
    node_of(model, "Conv", 1).input[0] = node_of(model, "Relu").output[0]


def float_residual(model: Any) -> None:
    addition = node_of(model, "Add")
    makers = {name: node for node in model.graph.node for name in node.output}
    place = next(i for i, name in enumerate(addition.input) if makers[name].op_type == "DequantizeLinear")
    quantizer = makers[makers[addition.input[place]].input[0]]
    addition.input[place] = quantizer.input[0]


def scales_along_inputs(model: Any) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "DequantizeLinear" and attribute.name == "axis" and attribute.i == 0:
                attribute.i = 1
                return


def nameless(model: Any) -> None:
    node_of(model, "Conv").name = ""


def newer(model: Any) -> None:
    model.opset_import[0].version = 25


def open_width(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"


BREACHES = {
    shift_zero_point: "zero point of .* is not 0",
    unsigned: "UINT8",
    negative_scale: "is not positive",
    scale_per_channel: "has 3 scales",
    codes_into_a_relu: "computes on the codes",
    float_weight: "quantized input and a float weight",
    float_input: "its input is not quantized",
    float_residual: "adds to .* what is not quantized",
    scales_along_inputs: "run along axis 1",
    nameless: "called ''",
    newer: "opset 25",
    open_width: "dimension 3 of the input",
}


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.__name__)
def test_every_breach_is_found(files: Callable[..., Any], breach: Callable[[Any], None]) -> None:
    model = onnx.load(files("ResNet")[1])
    breach(model)
    findings = "\n".join(lint(model))
    assert findings
    assert re.search(BREACHES[breach], findings), findings


def test_parts_of_a_concatenation_on_two_grids_are_found(files: Callable[..., Any]) -> None:
    model = onnx.load(files("ConcatNet")[1])
    assert lint(model) == []
    joined = node_of(model, "Concat")
    makers = {name: node for node in model.graph.node for name in node.output}
    part = makers[joined.input[0]]
    while part.op_type != "DequantizeLinear":
        part = makers[part.input[0]]
    own_constant(model, part, 1, np.array(0.5, np.float32))
    assert any("2 grids" in finding for finding in lint(model))
