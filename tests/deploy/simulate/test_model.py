"""Whole networks on integers, against ONNX Runtime and against the fake-quantized network."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import brecq
from brecq.deploy.complete import complete


def outputs(value: Any) -> list[Tensor]:
    return pytree.tree_leaves(value)


@pytest.mark.parametrize("name", ["ResNet", "MobileNet", "CifarResNet", "ConcatNet", "SENet", "FPN", "UNet", "ViT"])
def test_every_code_equals_the_runtimes(exported: Callable[..., Any], name: str) -> None:
    from brecq.deploy.onnx.session import load

    case = exported(name)
    simulator, session = brecq.simulate(case.result), load(case.file)
    arrays = [value.numpy() for value in case.inputs]
    ours, theirs = simulator.codes(*case.inputs), session.codes(*arrays)
    assert list(ours) == list(theirs)
    for tensor, codes in ours.items():
        assert torch.equal(codes.reshape(-1), torch.from_numpy(theirs[tensor]).reshape(-1)), tensor
    for found, expected in zip(outputs(simulator(*case.inputs)), session(*arrays), strict=True):
        assert torch.equal(found, torch.from_numpy(expected))


def test_the_simulator_is_deterministic_and_close_to_the_completed_program(
    exported: Callable[..., Any],
) -> None:
    case = exported("ResNet")
    simulator = brecq.simulate(case.result)
    first = simulator(*case.inputs)
    assert torch.equal(first, simulator(*case.inputs))
    with torch.no_grad():
        expected = complete(case.result).graph(*case.inputs)
    assert (first - expected).abs().max() < 0.01 * (expected.max() - expected.min())


def test_batch_size_does_not_matter(exported: Callable[..., Any]) -> None:
    case = exported("ConcatNet")
    simulator = brecq.simulate(case.result)
    single = torch.cat([simulator(*(value[i : i + 1] for value in case.inputs)) for i in range(3)])
    assert torch.equal(single, simulator(*case.inputs)[:3])


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
