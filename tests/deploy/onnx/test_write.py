"""ONNX files: integer kernels for every layer, valid, of the promised size, and refused before they are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import brecq
from brecq import LayerRule, QuantConfig, QuantResult
from brecq.deploy.sizes import ideal_bytes
from brecq.errors import ConfigError, ExportError

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
session = pytest.importorskip("brecq.deploy.onnx.session", reason="needs the extra onnx")

Quantized = Callable[..., QuantResult]


@pytest.mark.parametrize(
    ("name", "integer", "floating", "others"),
    [
        ("ResNet", 9, 0, {"QLinearAdd": 3, "QLinearGlobalAveragePool": 1}),
        ("MobileNet", 11, 0, {"QLinearAdd": 2, "QLinearGlobalAveragePool": 1}),
        ("CifarResNet", 8, 0, {"QLinearAdd": 3, "Slice": 4, "Pad": 2}),
        ("ConcatNet", 5, 0, {"QLinearConcat": 1, "NhwcMaxPool": 1}),
        ("SENet", 6, 0, {"QLinearMul": 1, "QLinearSigmoid": 1, "QLinearAdd": 1}),
        ("FPN", 12, 0, {"QLinearAdd": 2, "Resize": 2}),
        ("UNet", 11, 2, {"ConvTranspose": 2}),  # which has no integer kernel
        ("ViT", 10, 0, {"QGemm": 9, "QLinearConv": 1}),
    ],
)
def test_layers_are_integer_kernels(
    exported: Callable[..., Any], name: str, integer: int, floating: int, others: dict[str, int]
) -> None:
    kernels = session.load(exported(name).file).kernels()
    assert (kernels.integer, kernels.floating) == (integer, floating)
    assert others.items() <= kernels.operators.items()
    if name not in ("UNet", "ViT", "SENet"):  # all else is integer too: one way in, one way out
        assert kernels.operators.get("QuantizeLinear") == 1
        assert kernels.operators.get("DequantizeLinear", 0) <= 3  # FPN has three outputs


@pytest.mark.parametrize("name", ["ResNet", "MobileNet", "CifarResNet", "ConcatNet", "SENet", "FPN", "UNet", "ViT"])
def test_every_code_equals_the_simulators(exported: Callable[..., Any], name: str) -> None:
    case = exported(name)
    simulator, run = brecq.simulate(case.result), session.load(case.file)
    arrays = [value.numpy() for value in case.inputs]
    ours, theirs = simulator.codes(*case.inputs), run.codes(*arrays)
    assert list(ours) == list(theirs)
    for tensor, codes in ours.items():
        assert torch.equal(codes.reshape(-1), torch.from_numpy(theirs[tensor]).reshape(-1)), tensor
    expected = pytree.tree_leaves(simulator(*case.inputs))
    for output, value in zip(run(*arrays), expected, strict=True):
        assert torch.equal(torch.from_numpy(output), value)


def test_the_file_says_what_it_is(exported: Callable[..., Any]) -> None:
    case = exported("ResNet")
    model = onnx.load(case.file)
    onnx.checker.check_model(model, full_check=True)
    assert (model.producer_name, model.producer_version) == ("brecq", brecq.__version__)
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (8, [("", 18)])
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["brecq.config"])["weights"] == 4
    assert facts["brecq.data_digest"] == case.result.report.data_digest
    assert [value.name for value in model.graph.input] == ["x"]
    assert [value.name for value in model.graph.output] == ["output"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_outputs_keep_the_keys_of_a_dictionary(exported: Callable[..., Any]) -> None:
    assert [value.name for value in onnx.load(exported("FPN").file).graph.output] == ["p0", "p1", "p2"]


def test_any_batch_size(exported: Callable[..., Any]) -> None:
    case = exported("ViT")
    run = session.load(case.file)
    (whole,) = run(*(value.numpy() for value in case.inputs))
    for size in (1, 3):
        (part,) = run(*(value[:size].numpy() for value in case.inputs))
        assert np.array_equal(part, whole[:size])


@pytest.mark.parametrize("name", ["ResNet", "ViT"])
def test_nodes_and_constants_carry_the_names_of_modules(exported: Callable[..., Any], name: str) -> None:
    case = exported(name)
    graph = onnx.load(case.file).graph
    names = [node.name for node in graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    layers = [entry.layer for entry in case.result.report.scope if entry.weights]
    for layer in layers:
        assert any(found.startswith((f"{layer}/Conv", f"{layer}/Gemm")) for found in names), layer
    constants = [tensor.name for tensor in graph.initializer]
    for layer in layers:
        assert any(found.startswith(f"{layer}.weight") for found in constants), layer
    assert not [found for found in names if found.startswith("node_")]


@pytest.mark.parametrize(("pack", "opset"), [("cast", 25), ("native", 25), ("int8", 18)])
def test_every_form_computes_the_same(exported: Callable[..., Any], tmp_path: Path, pack: str, opset: int) -> None:
    pytest.importorskip("onnxruntime", minversion="1.24", reason="INT2 needs ONNX Runtime 1.24")
    case = exported("MobileNet")
    inputs = [value.numpy() for value in case.inputs]
    file = brecq.export(case.result, tmp_path / "m.onnx", pack=pack).path
    assert onnx.load(file).opset_import[0].version == opset
    (found,), (expected,) = session.load(file)(*inputs), session.load(case.file)(*inputs)
    if pack != "native":
        assert np.array_equal(found, expected)
    else:  # float kernels
        assert np.abs(found - expected).max() < 1e-5


def test_an_export_is_deterministic_and_survives_a_reload(exported: Callable[..., Any], tmp_path: Path) -> None:
    case = exported("ConcatNet")
    loaded = brecq.load(case.result.save(tmp_path / "out"))
    assert brecq.export(loaded, tmp_path / "again.onnx").path.read_bytes() == case.file.read_bytes()


class Wide(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = torch.nn.Conv2d(3, 256, 1), torch.nn.Conv2d(256, 256, 3, padding=1)
        self.head = torch.nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(torch.relu(self.stem(x)))).mean((2, 3)))


def test_a_file_is_as_large_as_its_bits(tmp_path: Path) -> None:
    bits = 3
    result = brecq.quantize(Wide().eval(), torch.randn(8, 3, 8, 8), brecq.QuantConfig(bits, 8, method="rtn"))
    exported = brecq.export(result, tmp_path / "m.onnx")
    assert exported.size == (tmp_path / "m.onnx").stat().st_size
    weights = 256 * 256 * 9 * bits // 8 + 8 * (3 * 256 + 256 * 10) // 8
    assert ideal_bytes(result) == weights + 2 * 4 * (256 + 256 + 10)
    assert ideal_bytes(result) < exported.size < 1.05 * ideal_bytes(result) + 6_000  # the graph


def test_other_quantizers_programs_are_exported_too(networks: ModuleType, tmp_path: Path) -> None:
    x86 = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    model = networks.build(networks.ConcatNet)
    config = brecq.QuantConfig(8, 8, method="rtn")
    result = brecq.quantize(model, networks.inputs(model, 16)[0], config, quantizer=quantizer)
    run = session.load(brecq.export(result, tmp_path / "m.onnx").path)
    assert (run.kernels().integer, run.kernels().floating) == (5, 0)
    x = networks.inputs(model, 8, seed=4)[0]
    assert torch.equal(torch.from_numpy(run(x.numpy())[0]), brecq.simulate(result)(x))


def test_weights_kept_in_float_stay_so(networks: ModuleType, quantized: Quantized, tmp_path: Path) -> None:
    """ONNX Runtime quantizes constant weights between Q/DQ by itself, per tensor, if it can."""
    result = quantized("ConcatNet", 4, 8, rules=(LayerRule("fuse", weights=32),))
    run = session.load(brecq.export(result, tmp_path / "m.onnx").path)
    assert (run.kernels().integer, run.kernels().floating) == (4, 1)
    x = networks.inputs(networks.build(networks.ConcatNet), 8, seed=4)[0]
    assert torch.equal(torch.from_numpy(run(x.numpy())[0]), brecq.simulate(result)(x))


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.conv(x) + self.conv(F.relu(x))).mean((2, 3)))


def test_float_weights_of_a_layer_that_is_called_twice(tmp_path: Path) -> None:
    x = torch.randn(64, 3, 6, 6)
    result = brecq.quantize(CalledTwice(), x, QuantConfig(32, 8, first_last=None, method="rtn"))
    run = session.load(brecq.export(result, tmp_path / "m.onnx").path)
    assert np.abs(run(x.numpy())[0] - brecq.simulate(result)(x).numpy()).max() < 1e-5


def test_weight_only_results_run_in_float(networks: ModuleType, quantized: Quantized, tmp_path: Path) -> None:
    result = quantized("ConcatNet", 3, 32)
    exported = brecq.export(result, tmp_path / "m.onnx")
    run = session.load(exported.path)
    assert run.kernels().operators.keys() <= {
        "Conv", "FusedConv", "GlobalAveragePool", "MaxPool", "Concat", "Reshape", "Gemm", "MatMulNBits", "Add", "Relu",
        "ReorderOutput", "ReorderInput",
    }  # fmt: skip
    x = networks.inputs(networks.build(networks.ConcatNet), 4, seed=4)[0]
    with torch.no_grad():
        assert np.abs(run(x.numpy())[0] - result.model(x).numpy()).max() < 1e-5


def test_asymmetric_8_bit_weights_are_refused_by_name(quantized: Quantized, tmp_path: Path) -> None:
    result = quantized("ConcatNet", 8, 8, weight_scheme="asymmetric")
    with pytest.raises(ExportError, match=r"stem\.weight.*--weight-scheme symmetric"):
        brecq.export(result, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_an_unknown_form_is_refused(quantized: Quantized, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'dense'.*planes, cast, native, int8"):
        brecq.export(quantized("ConcatNet"), tmp_path / "m.onnx", pack="dense")


class Unknown(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0e(self.conv(x))


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    result = brecq.quantize(Unknown().eval(), torch.randn(4, 3, 4, 4), brecq.QuantConfig(8, 8, method="rtn"))
    with pytest.raises(ExportError, match=r"bessel_i0e.*submodule"):
        brecq.export(result, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


class Twice(nn.Module):
    """Computes an activation function, a layer, and a constant pattern once for each branch that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.left, self.right = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        pattern = [torch.arange(y.numel()).view(y.shape) % 3 * 0.1 for _ in range(2)]
        left, right = self.left(F.relu(y)) + pattern[0], self.right(F.relu(y)) + pattern[1]
        return self.left(F.relu(self.shared(left))) - right * self.right(F.relu(self.shared(left)))


def test_what_is_computed_twice_has_one_quantizer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    result = brecq.quantize(Twice(), x, QuantConfig(weights=8, activations=8, method="rtn"))
    brecq.export(result, tmp_path / "model.onnx")
    simulator, run = brecq.simulate(result), session.load(tmp_path / "model.onnx")
    ours, theirs = simulator.codes(x), run.codes(x.numpy())
    assert list(ours) == list(theirs)
    assert all(
        torch.equal(codes.reshape(-1), torch.from_numpy(theirs[name]).reshape(-1)) for name, codes in ours.items()
    )
    with torch.no_grad():
        assert F.mse_loss(simulator(x), result.model(x)) < 1e-3 * result.model(x).var()
