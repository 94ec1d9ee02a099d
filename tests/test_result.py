"""A saved result, loaded again, computes the same bits; its weights take the bits that they have."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from torch import nn

import brecq
from brecq import QuantConfig, QuantResult, Recipe
from brecq.errors import CheckpointError, ConfigError


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quantized(networks: ModuleType, name: str, weights: int, activations: int = 4, **options: object) -> QuantResult:
    model = networks.build(getattr(networks, name))
    recipe = Recipe.preset("fast").replace(steps=3, batch_size=8, range_candidates=10)
    config = QuantConfig(weights=weights, activations=activations, recipe=recipe)
    inputs = networks.inputs(model, 16)
    return brecq.quantize(model, [inputs if len(inputs) > 1 else inputs[0]], config, **options)


@pytest.mark.parametrize(
    ("name", "weights", "activations"),
    [
        ("ResNet", 4, 4),
        ("UNet", 2, 4),
        ("ViT", 3, 8),
        ("TwoBranch", 8, 32),
        ("Recurrent", 32, 4),
        ("Signal", 5, 6),
        ("MobileNet", 4, 16),
    ],
)
def test_a_loaded_result_computes_the_same_bits(
    networks: ModuleType, tmp_path: Path, name: str, weights: int, activations: int
) -> None:
    result = quantized(networks, name, weights, activations)
    result.metadata["source"] = "a test"
    folder = result.save(tmp_path / "out")
    loaded = brecq.load(folder)
    inputs = networks.inputs(networks.build(getattr(networks, name)), 5, seed=7)
    with torch.no_grad():
        assert torch.equal(loaded.model(*inputs), result.model(*inputs))
    assert loaded.config == result.config
    assert json.dumps(loaded.report.to_dict()) == json.dumps(result.report.to_dict())
    assert (loaded.report.blocks, loaded.report.scope) == (result.report.blocks, result.report.scope)
    assert loaded.metadata == {"source": "a test"}
    assert [value.shape for value in loaded.example_inputs] == [value.shape for value in result.example_inputs]
    assert loaded.weight_bytes() == result.weight_bytes()
    again = loaded.save(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(brecq.load(again).model(*inputs), result.model(*inputs))


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*[m for _ in range(5) for m in (nn.Linear(256, 256), nn.ReLU())])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_take_their_true_bits_on_disk(tmp_path: Path, bits: int) -> None:
    torch.manual_seed(0)
    config = QuantConfig(weights=bits, activations=8, first_last=None, method="rtn")
    result = brecq.quantize(Wide().eval(), torch.randn(16, 256), config)
    folder = result.save(tmp_path)
    channels = 5 * 256
    packed = channels * 256 * bits / 8
    scales = channels * (4 + 4)  # of weights and of biases
    zero_points = 0 if bits == 8 else channels * bits / 8
    expected = packed + scales + zero_points + channels * 4  # biases are int32
    assert result.weight_bytes() == expected
    with safe_open(folder / "weights.safetensors", framework="pt") as file:
        stored = sum(value.numel() * value.element_size() for value in map(file.get_tensor, file.keys()))
    assert stored == expected
    file_size = (folder / "weights.safetensors").stat().st_size
    assert file_size < expected + 4096  # the header
    assert sum(file.stat().st_size for file in folder.iterdir()) < expected + 40_000  # no second copy of them
    assert result.float_bytes() == 4 * 5 * (256 * 256 + 256)


def test_what_is_in_the_folder(networks: ModuleType, tmp_path: Path) -> None:
    result = quantized(networks, "ResNet", 4)
    result.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "program.json", "weights.safetensors", "manifest.json", "report.json", "timing.json",
    }  # fmt: skip
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["seed"] == 0
    assert manifest["data_digest"] == result.report.data_digest
    assert manifest["config"]["weights"] == 4
    report = json.loads((tmp_path / "report.json").read_text())
    assert [block["name"] for block in report["blocks"]] == [block.name for block in result.report.blocks]


def test_a_submodule_is_saved_alone_and_put_back_by_its_name(networks: ModuleType, tmp_path: Path) -> None:
    result = quantized(networks, "ResNet", 4, submodule="layer1")
    loaded = brecq.load(result.save(tmp_path))
    assert json.loads((tmp_path / "manifest.json").read_text())["submodule"] == "layer1"
    model = networks.build(networks.ResNet)
    model.layer1 = loaded.model
    x = networks.inputs(model, 5)[0]
    with torch.no_grad():
        assert torch.equal(model(x), result.model(x))


def test_a_damaged_folder_is_an_error(networks: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing|not"):
        brecq.load(tmp_path / "nothing")
    result = quantized(networks, "TwoBranch", 8)
    result.save(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        brecq.load(tmp_path)


class Tied(nn.Module):
    """A small language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return self.head(x + self.body(x).relu())


@pytest.mark.parametrize("method", ["rtn", "reconstruct"])
def test_a_tied_weight_is_counted_and_stored_once(tmp_path: Path, method: str) -> None:
    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.randint(40, (32, 5))
    recipe = Recipe.preset("fast").replace(steps=5, batch_size=8, range_candidates=10)
    result = brecq.quantize(model, [ids], QuantConfig(method=method, recipe=recipe))
    assert result.float_bytes() == 4 * sum(parameter.numel() for parameter in model.parameters())
    table = 40 * 8 + 40 * 4  # codes of 8 bits, a scale for each row
    assert table < result.weight_bytes() < table + 8 * 8 + 8 * 16
    entry = next(entry for entry in result.report.scope if entry.kind == "embedding")
    assert (entry.weights, entry.reason) == (
        "8 bit symmetric",
        "its table is the weight of a layer, and is stored once",
    )
    found = brecq.evaluate(result.model, [ids], reference=model)
    assert found.sqnr is not None
    assert found.sqnr > 25
    result.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(brecq.load(tmp_path).model(ids), result.model(ids))


class Recurrent(nn.Module):
    """Ends in operators whose shapes PyTorch knows from their decompositions only: an LSTM and a bilinear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.state = nn.Linear(4, 4), nn.LSTM(4, 4, batch_first=True)
        self.last = nn.Bilinear(4, 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x), self.state(x)[0])


def test_operators_that_have_shapes_by_decomposition_only_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4)
    result = brecq.quantize(Recurrent(), x, QuantConfig(weights=8, activations=8, method="rtn"))
    loaded = brecq.load(result.save(tmp_path / "out"))
    assert torch.equal(loaded.model(x), result.model(x))
    assert torch.equal(loaded.model(x[:3]), result.model(x[:3]))


@pytest.mark.parametrize("submodule", [None, "layer1"])
def test_other_floating_point_types_would_change_the_grids(
    networks: ModuleType, tmp_path: Path, submodule: str | None
) -> None:
    model = networks.build(networks.ResNet)
    (x,) = networks.inputs(model, 8)
    result = brecq.quantize(model, x, QuantConfig(8, 8, method="rtn"), submodule=submodule)
    loaded = brecq.load(result.save(tmp_path / "out"))
    for network in (result.model, loaded.model, copy.deepcopy(loaded.model), nn.Sequential(loaded.model)):
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            with pytest.raises(ConfigError, match=f"{dtype} would change them".removeprefix("torch.")):
                network.to(dtype)
    with torch.no_grad():
        inputs = result.example_inputs
        assert torch.equal(loaded.converted.float().cpu()(*inputs), result.converted(*inputs))
