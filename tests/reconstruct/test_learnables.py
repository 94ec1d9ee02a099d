"""Every bias has an int32 code within half a step, on every path to a quantized network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import HistogramObserver
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

import brecq
from brecq.config import LayerRule, QuantConfig, Recipe
from brecq.evaluation import sqnr
from brecq.graph.fold import get_tensor
from brecq.placement.pt2e import decomposed

RTN = QuantConfig(8, 8, method="rtn")
LEARNED = QuantConfig(8, 8, recipe=Recipe(steps=12, tuning=1.0, tune_lr=0.05, bias_lr=0.05))


def pruned() -> nn.Module:
    """A pruned channel, one that its batch norm switches off, and an output that is its bias alone."""
    torch.manual_seed(0)
    layers: list[Any] = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)]
    net = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)).eval()
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0, 1
        net[3].weight[1], net[3].bias[1] = 1e-12, 3
        net[7].weight[4], net[7].bias[4] = 0, 20
    return net


def decibels(expected: Tensor, out: Tensor) -> float:
    return sqnr(float(expected.square().sum()), float((out - expected).square().sum()))


def biases(graph: GraphModule) -> list[tuple[Tensor, Tensor]]:
    """Codes and the product of the steps of each layer, read off a converted graph, in float64."""
    found = []
    for node in graph.graph.nodes:
        if not str(node.target).startswith(("aten.conv", "aten.linear")):
            continue
        x, w, b = node.args[:3]
        while x.target is not decomposed.dequantize_per_tensor.default:
            x = x.args[0]
        scale = w.args[1] if isinstance(w.args[1], float) else get_tensor(graph, w.args[1].target).double()
        found.append((get_tensor(graph, b.args[0].target), torch.as_tensor(x.args[1] * scale)))
    return found


@pytest.mark.parametrize("config", [RTN, LEARNED], ids=["rtn", "learned"])
def test_no_bias_saturates(config: QuantConfig) -> None:
    net, x = pruned(), torch.randn(24, 3, 6, 6)
    converted = brecq.quantize(net, x, config).converted
    with torch.no_grad():
        expected, out = net(x), converted(x)
    assert decibels(expected, out) > 40
    bn = net[3]
    factor = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach()
    folded = (net[2].bias - bn.running_mean) * factor + bn.bias
    for (codes, step), bias in zip(biases(converted), (net[0].bias, folded, net[7].bias), strict=True):
        assert codes.abs().max() < 2**30
        if config is RTN:
            assert ((codes * step - bias.double()).abs() <= 0.5001 * step + 1e-7 * bias.abs()).all()


@pytest.mark.parametrize("config", [RTN, QuantConfig(4, 4, recipe=Recipe(steps=12))], ids=["rtn", "learned"])
def test_tiny_values_are_quantized_as_well_as_others(config: QuantConfig) -> None:
    torch.manual_seed(0)
    x, outputs = torch.randn(16, 3, 6, 6), []
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6))
    for factor in (1.0, 2.0**-60):
        with torch.no_grad():
            net[0].weight *= factor
            for layer in (net[0], net[2], net[5]):
                layer.bias *= factor
        outputs.append(brecq.quantize(net, x, config).converted(x) / factor)
    assert decibels(*outputs) > (60 if config is RTN else 20)  # Adam's epsilon differs


@pytest.mark.parametrize("per_channel", [True, False])
def test_foreign_quantizers_and_weights_with_one_step_too(per_channel: bool) -> None:
    config = x86.get_default_x86_inductor_quantization_config()
    if not per_channel:
        whole = {"qscheme": torch.per_tensor_symmetric, "observer_or_fake_quant_ctr": HistogramObserver}
        config = dataclasses.replace(config, weight=dataclasses.replace(config.weight, **whole))
    quantizer = x86.X86InductorQuantizer().set_global(config)
    net, x = pruned(), torch.randn(24, 3, 6, 6)
    converted = brecq.quantize(net, x, RTN, quantizer=quantizer).converted
    with torch.no_grad():
        expected, out = net(x), converted(x)
    assert decibels(expected, out) > 40
    assert all(codes.abs().max() < 2**30 for codes, _ in biases(converted))


def test_the_runtime_adds_such_biases(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from brecq.deploy.onnx import session

    net, x = pruned(), torch.randn(24, 3, 6, 6)
    result = brecq.quantize(net, x, RTN)
    out = torch.from_numpy(session.load(brecq.export(result, tmp_path / "m.onnx").path)(x.numpy())[0])
    assert torch.equal(out, brecq.simulate(result)(x))
    with torch.no_grad():
        expected = net(x)
    assert decibels(expected, out) > 40


class Mixed(nn.Module):
    """`b` reads what `c` and an addition read as well; one of its channels is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.d = nn.Conv2d(8, 6, 3, padding=1)
        with torch.no_grad():
            self.b.weight[2], self.b.bias[2] = 1e-12, 3

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.d(x + self.b(x) + torch.relu(self.c(x))).mean((2, 3))


def test_completion_rounds_the_biases_of_what_it_quantizes(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from brecq.deploy.onnx import session

    torch.manual_seed(0)
    net, x = Mixed().eval(), torch.randn(24, 3, 6, 6)
    config = dataclasses.replace(RTN, rules=(LayerRule("b", activations=32),))
    result = brecq.quantize(net, x, config)
    run = session.load(brecq.export(result, tmp_path / "m.onnx").path)
    assert (run.kernels().integer, run.kernels().floating) == (4, 0)
    out = torch.from_numpy(run(x.numpy())[0])
    torch.testing.assert_close(out, brecq.simulate(result)(x), rtol=1e-5, atol=1e-5)  # the mean is taken in float
    with torch.no_grad():
        assert decibels(net(x), out) > 35  # -0.2 where the runtime's own rounding of the bias saturates
