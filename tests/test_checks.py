"""What is refused before any work: models, devices and data that could not give a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, errors, legality
from brecq.checks import check_device, check_runs, check_weights
from brecq.data import Dataset
from brecq.errors import DataError


class Net(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 3)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.last(torch.relu(self.first(x))))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).mean(1))


INPUTS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def test_every_error_is_exported() -> None:
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert kinds <= set(brecq.__all__)
    assert all(getattr(brecq, name) is getattr(errors, name) for name in kinds)


@pytest.mark.parametrize("device", ["meta", "mps", "tpu9", "cuda:99", "", 3.5, None])
def test_devices_that_cannot_be_used(device: Any) -> None:
    with pytest.raises(brecq.ConfigError, match="the device is"):
        check_device(device)
    for verb in (brecq.quantize, brecq.measure_sensitivity):
        with pytest.raises(brecq.ConfigError, match="the device is"):
            verb(Net(), INPUTS, device=device)
    with pytest.raises(brecq.ConfigError, match="the device is"):
        brecq.evaluate(Net(), INPUTS, device=device)
    with pytest.raises(brecq.ConfigError, match="the device is"):
        brecq.distill(Net(), 4, shape=(4,), device=device)


@pytest.mark.parametrize("verb", [brecq.quantize, brecq.measure_sensitivity, brecq.inspect])
def test_models_and_configurations_of_other_types(verb: Any) -> None:
    with pytest.raises(brecq.ConfigError, match=r"the model is a function; give a torch\.nn\.Module"):
        verb(lambda x: x, INPUTS)
    with pytest.raises(brecq.ConfigError, match=r"config is \{'weights': 4\}; give a brecq\.QuantConfig"):
        verb(Net(), INPUTS, {"weights": 4})


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_weights_that_are_not_finite_are_named_before_anything_runs(value: float) -> None:
    model = Net(lambda y: pytest.fail("ran"))
    with torch.no_grad():
        model.last.weight[1, 2] = value
    for verb in (brecq.quantize, brecq.measure_sensitivity, brecq.inspect):
        with pytest.raises(brecq.SourceError, match=r"'last\.weight' holds NaN or infinite values \(1 of 12\)"):
            verb(model, INPUTS)


def test_weights_without_values_are_named() -> None:
    with pytest.raises(brecq.SourceError, match=r"'first\.weight' has no values"):
        check_weights(Net().to("meta"))


def test_buffers_may_hold_infinity_but_no_nan() -> None:
    model = Net()
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    check_weights(model)
    model.mask = torch.tensor([float("nan")])
    with pytest.raises(brecq.SourceError, match="'mask'"):
        check_weights(model)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda y: None, "the network returns None; its forward has to return a tensor"),
        (lambda y: "hello", "returns 'hello'"),
        (lambda y: (), "returns tuple"),
        (lambda y: {"loss": 3}, "returns 3"),
    ],
)
def test_networks_that_return_no_tensor(answer: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(brecq.CaptureError, match=message):
        brecq.quantize(Net(answer), INPUTS)


@pytest.mark.parametrize("wrong", [10, -1, 2**40])
def test_token_ids_that_the_network_does_not_have_are_found_wherever_they_are(wrong: int) -> None:
    ids = torch.randint(10, (32, 5), generator=torch.Generator().manual_seed(0))
    check_runs(Tokens(), Dataset((ids,)))
    ids[17, 3] = wrong
    for verb in (brecq.quantize, brecq.measure_sensitivity):
        with pytest.raises(brecq.DataError, match=r"does not run on .*sample 17.*IndexError.*token ids"):
            verb(Tokens(), ids)
    with pytest.raises(brecq.DataError, match="does not run on samples 0 to 31: IndexError"):
        brecq.evaluate(Tokens(), ids)


def test_outputs_that_are_nan_name_the_sample() -> None:
    inputs = INPUTS.abs()
    inputs[5] = 1e38
    with pytest.raises(brecq.DataError, match="output holds NaN for sample 5"):
        brecq.quantize(Net(lambda y: y.masked_fill(y.abs() > 1e30, torch.nan)), inputs)


@pytest.mark.parametrize("inputs", [torch.randn(8, 5), torch.randn(8, 0), torch.randint(3, (8, 4))])
def test_inputs_of_another_shape_or_type(inputs: Tensor) -> None:
    with pytest.raises(brecq.DataError, match="does not run on sample 0"):
        brecq.quantize(Net(), inputs)


def test_the_network_is_tried_in_eval_mode_and_left_in_its_own() -> None:
    model = Net().train()
    modes: list[bool] = []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    check_runs(model, Dataset((INPUTS,)))
    assert modes == [False]
    assert model.training


class Dimmed(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x * t, 2)


def test_a_single_number_as_an_input_is_named() -> None:
    batches = [(torch.randn(8, 3, 4, 6), torch.tensor(0.5)) for _ in range(2)]
    with pytest.raises(
        brecq.DataError, match=r"does not run .* t: a single number, so each element is taken for one sample"
    ):
        brecq.quantize(Dimmed(), batches)
    with pytest.raises(brecq.DataError, match="input 1 is a single number"):
        brecq.inspect(Dimmed(), batches[0])


class OfDictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(self.conv(batch["image"]).relu().mean((2, 3)))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "look",
    [
        lambda model, x: brecq.quantize(model, x),
        lambda model, x: brecq.quantize(model, x, submodule="conv"),
        lambda model, x: brecq.quantize(model, x, submodules=["conv", "head"]),
        lambda model, x: brecq.inspect(model, (x,)),
        lambda model, x: brecq.inspect(model, {"image": x}),
        lambda model, x: brecq.inspect(model, (x,), submodule="conv"),
        lambda model, x: brecq.inspect(model, (x,), submodules=["conv", "head"]),
        lambda model, x: legality.check(model, (x,), QuantConfig(target="onnxruntime"), rehearse=False),
        lambda model, x: brecq.measure_sensitivity(model, x),
        lambda model, x: brecq.evaluate(model, x, reference=model),
    ],
)
def test_whatever_looks_at_a_network_says_how_one_of_a_dictionary_is_wrapped(look) -> None:
    with pytest.raises(DataError, match=r"(?s)OfDictionary.forward\(batch\) takes a dictionary with 'image'.*Wrapped"):
        look(OfDictionary().eval(), torch.randn(4, 3, 8, 8))
