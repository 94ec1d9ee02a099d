"""From a table to allocations, and to networks of exactly the predicted size."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import torch

import brecq
from brecq.config import LayerRule, QuantConfig
from brecq.errors import BudgetError, CheckpointError, ConfigError, HardwareError
from brecq.precision.allocation import BitAllocation, LayerBits
from brecq.precision.charts import plot_front
from brecq.precision.hardware.accelerator import Accelerator
from brecq.precision.search import check_budgets, pareto, search, uniform


@pytest.fixture
def table(bench):
    return bench.table("ResNet", bits=(2, 3, 4, 8), cross="all")


def ends(table, cost="size"):
    front = pareto(table, cost, 2, hardware=Accelerator.load("edge-fpga"))
    return front[0].costs[cost], front[-1].costs[cost]


@pytest.mark.parametrize("algorithm", ["exact", "genetic", "random"])
def test_an_allocation_keeps_every_budget(table, algorithm: str) -> None:
    low, high = ends(table)
    limit = (low + high) / 2
    found = search(table, [f"size={limit}B", "bops=1G"], algorithm=algorithm, seed=2)
    assert found.costs["size"] <= limit
    assert found.costs["bops"] <= 1e9
    assert found.budgets == {"size": limit, "bops": 1e9}
    assert found.layers.keys() == {layer.name for layer in table.layers}
    assert found.layers["conv1"] == found.layers["fc"] == LayerBits(8, 8)
    assert found == search(table, [f"size={limit}B", "bops=1G"], algorithm=algorithm, seed=2)


def test_more_room_loses_less_and_the_front_is_monotone(table) -> None:
    front = pareto(table, "size", 6)
    sizes, losses = [p.costs["size"] for p in front], [p.loss for p in front]
    assert sizes == sorted(sizes)
    assert losses == sorted(losses, reverse=True)
    low, high = ends(table)
    assert (sizes[0], sizes[-1]) == (low, high)
    assert {bits.weights for bits in list(front[0].layers.values())[1:-1]} == {2}
    assert {bits.weights for bits in front[-1].layers.values()} == {8}


def test_uniform_precision_is_an_allocation_too(table) -> None:
    found = uniform(table, 3)
    assert {bits.weights for bits in list(found.layers.values())[1:-1]} == {3}
    assert search(table, f"size={found.costs['size']}B").loss <= found.loss
    with pytest.raises(ConfigError, match=r"does not choose from 5 bits, but from \[2, 3, 4, 8\]"):
        uniform(table, 5)


def test_a_front_keeps_the_other_budgets(table) -> None:
    for point in pareto(table, "latency", 4, budgets=["size=9KB"], hardware=Accelerator.load("edge-fpga")):
        assert point.costs["size"] <= 9000
        assert point.hardware == "edge-fpga"


def test_metrics_and_cross_terms_change_the_prediction(table) -> None:
    low, high = ends(table)
    budget = f"size={(low + high) / 3}B"
    default = search(table, budget)
    assert search(table, budget, metric="relative").loss != default.loss
    assert search(table, budget, cross=False).loss != default.loss


@pytest.mark.parametrize(
    ("budgets", "options", "error", "message"),
    [
        ("size=1B", {}, BudgetError, r"size ≤ 1B; reachable are [\d.]+KB to [\d.]+KB"),
        ("latency=1ms", {}, ConfigError, "needs a hardware model"),
        ("size=1MB", {"algorithm": "best"}, ConfigError, "algorithm is 'best'; choose one of exact, genetic, random"),
        ("size=1MB", {"metric": "mse"}, ConfigError, "metric is 'mse'"),
        ([], {}, ConfigError, "no budget"),
    ],
)
def test_searches_that_cannot_be_made(table, budgets, options, error, message) -> None:
    with pytest.raises(error, match=message):
        search(table, budgets, **options)


def test_float_activations_have_no_latency_on_integer_hardware(bench) -> None:
    table = bench.table("ResNet", config=bench.config(activations=32, first_last=None), bits=(2, 4), cross="none")
    with pytest.raises(HardwareError, match=r"conv1 has 2-bit weights and 32-bit inputs.*-a 8"):
        check_budgets(table, ["latency=1ms"], Accelerator.load("edge-fpga"))
    assert search(table, "bops=100G").layers["conv1"].activations == 32


@pytest.mark.parametrize("name", ["ResNet", "ConcatNet", "UNet", "Recurrent", "ViT", "MobileNet"])
def test_the_packed_size_is_exactly_the_predicted_one(bench, name: str) -> None:
    table = bench.table(name, bits=(2, 3, 4, 8), activation_bits=(4, 8), cross="none")
    for seed in range(2):
        found = search(table, "bops=1T", algorithm="random", seed=seed)
        if seed:  # random allocations without a tight budget are the widest: narrow it
            found = search(table, f"size={0.5 * (found.costs['size'] + ends(table)[0])}B", algorithm="random")
        config = dataclasses.replace(bench.config(), method="rtn")
        result = brecq.quantize(bench.model(name), bench.inputs(name), config, allocation=found)
        assert result.weight_bytes() == found.costs["size"]
        scope = {entry.layer: entry for entry in result.report.scope if entry.weights}
        for layer, bits in found.layers.items():
            assert scope[layer].weights.startswith(f"{bits.weights} bit")
            assert scope[layer].inputs.startswith(f"{bits.activations} bit")
        assert BitAllocation.from_dict(result.report.allocation) == found


def test_a_delivered_network_is_like_any_other(bench, table, tmp_path: Path) -> None:
    found = search(table, f"size={sum(ends(table)) / 2}B")
    result = brecq.quantize(bench.model("ResNet"), bench.inputs("ResNet"), bench.config(), allocation=found)
    loaded = brecq.load(result.save(tmp_path))
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(loaded.model(x), result.model(x))
    assert loaded.weight_bytes() == found.costs["size"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["allocation"]["layers"]["fc"] == {"weights": 8, "activations": 8}
    # the rules of the allocation alone make the same network
    again = brecq.quantize(bench.model("ResNet"), bench.inputs("ResNet"), found.apply(bench.config()))
    assert torch.equal(again.model(x), result.model(x))


def test_learning_starts_from_learned_codes(bench, table) -> None:
    config = QuantConfig(recipe=bench.recipe.replace(steps=60))
    learned = bench.measure("ResNet", config=config, bits=(2, 4), quality="reconstructed")
    found = search(learned, f"size={ends(learned)[0]}B")  # all 2 bits: every block as it was learned
    few = QuantConfig(recipe=bench.recipe.replace(steps=1, compensate=False))  # else both start well
    data = bench.model("ResNet"), bench.inputs("ResNet"), few
    cold = brecq.quantize(*data, allocation=found)
    warm = brecq.quantize(*data, allocation=found, learned=learned.codes)
    for before, after in zip(cold.report.blocks[1:4], warm.report.blocks[1:4], strict=True):
        assert after.error_after < 0.9 * before.error_after
    assert warm.report.notes[-1] == "7 weights started from the codes that the sensitivity table learned"
    with pytest.raises(ConfigError, match=r"learned codes of 'layer1.0.conv1' have shape \[2\]"):
        brecq.quantize(*data, allocation=found, learned={"layer1.0.conv1/weight@2": torch.zeros(2)})


def test_an_allocation_survives_saving_and_rules_win(table, tmp_path: Path) -> None:
    found = search(table, "size=9KB")
    for path in (tmp_path, tmp_path / "allocation.json"):
        found.save(tmp_path / "allocation.json")
        assert BitAllocation.load(path) == found
    config = found.apply(QuantConfig(rules=(LayerRule("fc", weights=4),), seed=7))
    assert config.seed == 7
    assert [rule.weights for rule in config.rules if rule.matches("fc")] == [8, 4]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (None, CheckpointError, "is missing"),
        ("{", CheckpointError, "is no bit allocation"),
        ({"version": 7}, CheckpointError, "version 7"),
        ({"layers": {"conv1": {"weights": 9, "activations": 8}}}, CheckpointError, "is 9; choose 2 to 8"),
        ({"layers": {"conv1": {"weights": 4}}}, CheckpointError, "is no bit allocation"),
    ],
)
def test_allocations_that_cannot_be_read(table, tmp_path: Path, change, error, message: str) -> None:
    file = tmp_path / "allocation.json"
    if isinstance(change, str):
        file.write_text(change)
    elif change is not None:
        file.write_text(json.dumps({**search(table, "size=9KB").to_dict(), **change}))
    with pytest.raises(error, match=message):
        BitAllocation.load(file)


def test_an_allocation_of_another_network_is_an_error(bench, table) -> None:
    found = search(table, "size=9KB")
    with pytest.raises(ConfigError, match="lacks 'classifier'"):
        brecq.quantize(bench.model("MobileNet"), bench.inputs("MobileNet"), bench.config(), allocation=found)
    other = dataclasses.replace(found, layers={**found.layers, "more": LayerBits(4, 8)})
    with pytest.raises(ConfigError, match="names 'more', which the network does not have"):
        brecq.quantize(bench.model("ResNet"), bench.inputs("ResNet"), bench.config(), allocation=other)


def test_sensitivities_that_are_all_zero_are_told_as_such(table, tmp_path: Path) -> None:
    """A last layer of zeros passes no gradient: the least bits everywhere would be told as the best in silence."""
    terms = [dataclasses.replace(term, losses=dict.fromkeys(term.losses, 0.0)) for term in table.terms]
    nothing = dataclasses.replace(table, terms=tuple(terms))
    with pytest.warns(
        UserWarning, match="every sensitivity is 0 by the metric fisher: .* or take the metric relative"
    ):
        chosen = search(nothing, "size=1MB")
    with warnings.catch_warnings():  # of matplotlib: a logarithm of nothing but zeros
        warnings.simplefilter("error")
        plot_front([chosen], "size", chosen, [tmp_path / "front.png"])
