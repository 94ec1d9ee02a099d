"""Inputs by name, all the way: capture, quantize, submodules, search, inspect, save and load."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq.errors import DataError

GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(1, 20, (16, 6), generator=GENERATOR)
MASK = (torch.arange(6) < torch.randint(2, 7, (16, 1), generator=GENERATOR)).long()
CONFIG = brecq.QuantConfig(weights=8, activations=8, method="rtn")


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, states: Tensor, bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        hidden = self.down(self.up(states).relu())
        return states + (hidden if mask is None else hidden * mask[..., None])


class Text(nn.Module):
    """A token network whose order of inputs is not that of the dictionary, with one that nobody gives between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder, self.head = nn.Embedding(20, 8), Encoder(), nn.Linear(8, 4)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, *, attention_mask: Tensor, labels: Any = None
    ) -> dict[str, Tensor]:
        states = self.encoder(self.embed(input_ids), None, mask=attention_mask)
        mask = attention_mask[..., None]
        return {"logits": self.head((states * mask).sum(1) / mask.sum(1))}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Text().eval()


@pytest.fixture(scope="module")
def batches() -> list[UserDict[str, Tensor]]:
    return [
        UserDict(attention_mask=MASK[i : i + 4], labels=torch.zeros(4).long(), input_ids=IDS[i : i + 4])
        for i in range(0, 16, 4)
    ]


def decibels(found: Any, expected: Any) -> float:
    found, expected = found["logits"], expected["logits"]
    return float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum()))


def test_quantize_evaluate_save_and_load(model: nn.Module, batches: list[Any], tmp_path: Any) -> None:
    result = brecq.quantize(model, batches, CONFIG)
    named = {"attention_mask": MASK, "input_ids": IDS}
    with torch.no_grad():
        found = result.model(**named)
        assert decibels(found, model(**named)) > 30
        assert torch.equal(result.model(IDS, MASK)["logits"], found["logits"])
    assert (
        "inputs: input_ids, attention_mask by name; 'labels' taken as the label, not given to the network"
        in result.report.notes
    )
    result.save(tmp_path)
    loaded = brecq.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.model(**named)["logits"], found["logits"])
        assert torch.equal(brecq.simulate(loaded)(**named)["logits"], brecq.simulate(result)(IDS, MASK)["logits"])


@pytest.mark.parametrize("submodule", ["encoder", "encoder.up"])
def test_submodule(model: nn.Module, batches: list[Any], submodule: str) -> None:
    result = brecq.quantize(model, batches, CONFIG, submodule=submodule)
    with torch.no_grad():
        named = {"input_ids": IDS, "attention_mask": MASK}
        assert 30 < decibels(result.model(**named), model(**named)) < 90


def test_inspect(model: nn.Module) -> None:
    found = brecq.inspect(model, {"attention_mask": MASK, "input_ids": IDS})
    assert found.blocks[0].inputs == ("input_ids", "attention_mask")
    assert brecq.inspect(model, {"attention_mask": MASK, "input_ids": IDS}, submodule="encoder").blocks


def test_the_order_of_a_dictionary_does_not_matter(model: nn.Module) -> None:
    first = brecq.quantize(model, [{"input_ids": IDS, "attention_mask": MASK}], CONFIG)
    second = brecq.quantize(model, {"attention_mask": MASK, "input_ids": IDS}, CONFIG)
    assert first.report.data_digest == second.report.data_digest
    with torch.no_grad():
        assert torch.equal(first.model(IDS, MASK)["logits"], second.model(IDS, MASK)["logits"])


class Tagger(nn.Module):
    """Scores of each token beside its state; the states come first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 6)

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor) -> dict[str, Tensor]:
        states = self.embed(input_ids)
        states = states + self.down(self.up(states).relu()) * attention_mask[..., None]
        return {"states": states, "logits": self.head(states)}


def test_fisher_information_and_sensitivity(batches: list[Any]) -> None:
    torch.manual_seed(0)
    model = Tagger().eval()
    table = brecq.measure_sensitivity(model, batches, brecq.QuantConfig(first_last=None), bits=(2, 4))
    assert {layer.name for layer in table.layers} == {"up", "down", "head"}
    recipe = brecq.Recipe.preset("fast").replace(steps=3, batch_size=8, loss="fisher", range_candidates=10)
    result = brecq.quantize(model, batches, brecq.QuantConfig(recipe=recipe))
    unlabeled = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    found = brecq.evaluate(result.model, unlabeled, reference=model)
    assert found.scored == "output 'logits', largest of 6 along axis 2, 6 positions a sample"
    assert list(found.outputs) == ["states", "logits"]
    with pytest.raises(DataError, match="class_axis is 7, and the scores have shape"):
        brecq.quantize(model, batches, brecq.QuantConfig(recipe=recipe, class_axis=7))
