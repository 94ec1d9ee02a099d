"""Whole networks on integers. `onnx/test_write.py` compares them with ONNX Runtime, code for code."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

import brecq
from brecq import QuantResult
from brecq.deploy.complete import complete

Quantized = Callable[..., QuantResult]


def test_the_simulator_is_deterministic_and_close_to_the_completed_program(
    networks: ModuleType, quantized: Quantized
) -> None:
    result, (x,) = quantized("ResNet"), networks.inputs(networks.build(networks.ResNet), 6, seed=5)
    simulator = brecq.simulate(result)
    first = simulator(x)
    assert torch.equal(first, simulator(x))
    with torch.no_grad():
        expected = complete(result).graph(x)
    assert (first - expected).abs().max() < 0.01 * (expected.max() - expected.min())


def test_batch_size_does_not_matter(networks: ModuleType, quantized: Quantized) -> None:
    simulator, (x,) = brecq.simulate(quantized("ConcatNet")), networks.inputs(networks.build(networks.ConcatNet), 3)
    assert torch.equal(torch.cat([simulator(part) for part in x.split(1)]), simulator(x))


def test_a_trained_network_has_its_accuracy_on_integers(shared_data: Any, networks: ModuleType) -> None:
    from safetensors.torch import load_file

    from brecq.data import Preprocessing, load_data

    model = networks.CifarResNet()
    model.load_state_dict(load_file(shared_data / "weights" / "cifar10_resnet20.safetensors"))
    preprocessing = Preprocessing.imagenet().replace(size=(32, 32), resize=None)
    data = load_data(f"{shared_data / 'cifar10.npz'}:x_test,y_test", preprocessing, 300, 0)
    result = brecq.quantize(model.eval(), data.inputs[0][:64], brecq.QuantConfig(8, 8, method="rtn"))
    fake = brecq.evaluate(result.model, data).top1
    integer = brecq.evaluate(brecq.simulate(result), data).top1
    assert fake is not None
    assert integer is not None
    assert abs(fake - integer) <= 2
    assert integer > 70
