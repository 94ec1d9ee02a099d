"""`quantize` and `inspect` from end to end, on small networks."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

import brecq
from brecq import Dataset, LayerRule, QuantConfig, Recipe
from brecq.converted import convert as convert_module
from brecq.errors import CheckpointError, ConfigError, DataError, PartitionError
from brecq.progress import Progress

BLOCKS = ["conv1", "layer1.0", "layer1.1", "layer2.0", "fc"]


@pytest.fixture
def model(networks: ModuleType) -> nn.Module:
    return networks.build(networks.ResNet)


@pytest.fixture
def x(networks: ModuleType, model: nn.Module) -> Tensor:
    return networks.inputs(model, 48)[0]


def config(recipe: str = "fast", **changes: object) -> QuantConfig:
    own = {name: changes.pop(name) for name in list(changes) if name in QuantConfig.__dataclass_fields__}
    settings = {"steps": 6, "batch_size": 16, "range_candidates": 20, **changes}
    return QuantConfig(**{"activations": 4, **own}, recipe=Recipe.preset(recipe).replace(**settings))


def run(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


def test_without_steps_no_more_samples_are_used_than_are_learned_from(model: nn.Module, x: Tensor) -> None:
    """The others would only be run through every block."""
    for recipe, steps, samples in (("instant", 0, 32), ("fast", 2, 48)):
        changes = config(recipe, steps=steps, range_samples=28, tuning=0.0)
        report = brecq.quantize(model, x, changes).report
        assert report.samples == samples
        said = "nothing is learned by gradient steps: 32 of the 48 samples are used" in report.notes
        assert said == (samples < 48)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_quantize(model: nn.Module, x: Tensor) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = brecq.quantize(model, x, config())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    assert 0 < distance(run(result.model, x), run(model, x)) < 0.5
    assert run(result.model, x[:1]).shape == (1, 10)
    report = result.report
    assert [block.name for block in report.blocks] == [*BLOCKS, "end to end"]
    assert [block.stage for block in report.blocks] == ["joint"] * len(BLOCKS) + ["tuning"]
    assert report.block_forwards == 3 * len(BLOCKS)
    assert report.samples == 48
    assert report.config == config().to_dict()
    assert torch.__version__.startswith(report.versions["torch"])
    assert sum(bool(entry.weights) for entry in report.scope) == 9
    assert report.seconds > 0
    assert report.notes


@pytest.mark.parametrize("name", ["ResNet", "ConcatNet", "UNet", "ViT", "FPN"])
def test_the_converted_network_is_the_one_that_was_measured(
    networks: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = convert_module.convert
    model = networks.build(getattr(networks, name))
    inputs = networks.inputs(model, 32)
    expected = {}

    def keep(graph: nn.Module) -> nn.Module:
        with torch.no_grad():
            expected["output"] = graph(*inputs)
        return original(graph)

    monkeypatch.setattr("brecq.steps.carry_out.convert", keep)
    result = brecq.quantize(model, inputs[0], config(weights=3))
    found = tree_leaves(run(result.model, inputs[0]))
    assert all(torch.equal(a, b) for a, b in zip(found, tree_leaves(expected["output"]), strict=True))


def test_another_quantizer_of_pt2e(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The x86 quantizer of torchao decides where; brecq learns; the result is what was prepared."""
    expected = {}
    original = convert_module.convert

    def keep(graph: nn.Module) -> nn.Module:
        expected["output"] = run(graph, x)
        return original(graph)

    monkeypatch.setattr("brecq.steps.carry_out.convert", keep)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    result = brecq.quantize(model, x, config(), quantizer=quantizer)
    assert torch.equal(run(result.model, x), expected["output"])
    layers = [entry for entry in result.report.scope if entry.weights]
    assert len(layers) == 9
    assert all(entry.weights.startswith("8 bit symmetric") for entry in layers)
    assert distance(run(result.model, x), run(model, x)) < 0.05
    assert {block.steps for block in result.report.blocks[:-1]} == {6}


def test_rounding_to_nearest_is_the_baseline(model: nn.Module, x: Tensor) -> None:
    baseline = brecq.quantize(model, x, config(method="rtn", weights=2))
    learned = brecq.quantize(model, x, config(weights=2, steps=30))
    target = run(model, x)
    assert distance(run(learned.model, x), target) < 0.8 * distance(run(baseline.model, x), target)
    assert [block.stage for block in baseline.report.blocks] == ["rtn"] * 5
    assert all(block.steps == 0 for block in baseline.report.blocks)


def test_any_iterable_of_batches_and_labels_beside_them(model: nn.Module, x: Tensor) -> None:
    whole = brecq.quantize(model, x, config())
    batches = brecq.quantize(model, (batch for batch in x.split(20)), config())
    assert torch.equal(run(batches.model, x), run(whole.model, x))
    assert batches.report.data_digest == whole.report.data_digest

    labels = torch.arange(48) % 10
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=16)
    labelled = config(loss="fisher", fisher_labels="given")
    first = brecq.quantize(model, loader, labelled)
    assert first.report.block_forwards == 4 * len(BLOCKS)
    other = brecq.quantize(model, [(x, (labels + 1) % 10)], labelled)
    assert not torch.equal(run(first.model, x), run(other.model, x))
    for wrong in (10, -1):
        with pytest.raises(DataError, match=f"there is a label {wrong}, and the network has classes 0 to 9; check"):
            brecq.quantize(model, [(x, torch.where(labels == 3, wrong, labels))], labelled)


@pytest.mark.parametrize("masks", [False, True])
def test_labels_that_are_asked_for_and_missing_are_an_error(model: nn.Module, x: Tensor, masks: bool) -> None:
    given = config(loss="fisher", fisher_labels="given")
    targets = torch.zeros(len(x), 16, 16, dtype=torch.int64) if masks else None
    data = Dataset((x,), targets=targets)
    with pytest.raises(ConfigError, match="one class index a sample, and the calibration data has none; give labeled"):
        brecq.quantize(model, data, given, progress=Never())
    with pytest.raises(ConfigError, match="fisher_labels='sampled', which needs no labels"):
        brecq.quantize(model, data, given, progress=Never(), submodule="layer1")
    with pytest.raises(ConfigError, match="several submodules are learned each on its own outputs"):
        brecq.quantize(model, [(x, torch.arange(48) % 10)], given, progress=Never(), submodules=["layer1", "layer2"])
    with pytest.raises(ConfigError, match="one class index a sample"):
        brecq.measure_sensitivity(model, data, given, quality="reconstructed", progress=Never())
    for unasked in (config(fisher_labels="given"), given.replace(method="rtn")):  # nothing is weighed by labels
        assert brecq.quantize(model, data, unasked.replace(recipe=unasked.recipe.replace(steps=1))).report.blocks


def test_several_inputs(networks: ModuleType) -> None:
    model = networks.build(networks.TwoBranch)
    a, b = networks.inputs(model, 20)
    result = brecq.quantize(model, [(a[:10], b[:10]), (a[10:], b[10:])], config())
    with torch.no_grad():
        assert distance(result.model(a, b), model(a, b)) < 0.5


def test_one_sample(model: nn.Module, x: Tensor) -> None:
    result = brecq.quantize(model, x[:1], config(steps=2))
    assert result.report.samples == 1
    assert result.example_inputs[0].shape == (2, 3, 16, 16)


def test_a_submodule_is_put_back(model: nn.Module, x: Tensor) -> None:
    result = brecq.quantize(model, x, config(first_last=None, weights=3), submodule="layer1")
    assert [block.name for block in result.report.blocks] == ["0", "1", "end to end"]
    assert isinstance(result.model, type(model))
    assert result.model.fc.weight is not model.fc.weight
    assert isinstance(model.layer1, nn.Sequential)  # the model itself is unchanged
    found, expected = run(result.model, x), run(model, x)
    assert 0 < distance(found, expected) < 0.5
    head = run(model.relu, run(model.bn1, run(model.conv1, x)))
    middle = run(result.converted, head.clone())
    assert 0 < distance(middle, run(model.layer1, head.clone())) < 0.5
    rest = run(lambda y: model.fc(model.layer2(y).mean((2, 3))), middle)
    torch.testing.assert_close(found, rest, rtol=1e-4, atol=1e-5)


class KilledIn(Progress):
    def __init__(self, index: int) -> None:
        self.index, self.current = index, -1

    def block(self, index: int, name: str) -> None:
        self.current = index

    def step(self, step: int, soft_loss: float, hard_loss: float | None) -> None:
        if self.current == self.index:
            raise KeyboardInterrupt


def test_resume_after_a_kill(model: nn.Module, x: Tensor, tmp_path: Path) -> None:
    whole = brecq.quantize(model, x, config())
    with pytest.raises(KeyboardInterrupt):
        brecq.quantize(model, x, config(), run_dir=tmp_path, progress=KilledIn(3))
    # the budget of memory does not change the result, so it may change
    resumed = brecq.quantize(model, x, config(memory_budget=600_000_000), run_dir=tmp_path, resume=True)
    assert [block.resumed for block in resumed.report.blocks] == [True, True, True, False, False, False]
    assert torch.equal(run(resumed.model, x), run(whole.model, x))
    assert list(tmp_path.rglob("*.bin")) == []
    resumed.save(tmp_path)  # from now on the finished blocks are not needed any more
    assert not (tmp_path / "blocks").exists()
    assert torch.equal(run(brecq.load(tmp_path).model, x), run(whole.model, x))


def test_resuming_something_else_is_refused(model: nn.Module, x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        brecq.quantize(model, x, config(), run_dir=tmp_path, progress=KilledIn(2))
    with pytest.raises(CheckpointError, match="different config"):
        brecq.quantize(model, x, config(weights=3), run_dir=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="different data"):
        brecq.quantize(model, x + 1, config(), run_dir=tmp_path, resume=True)


def test_a_resumed_run_may_tune_otherwise(model: nn.Module, x: Tensor, tmp_path: Path) -> None:
    """Blocks do not depend on it; what was tuned with other settings is not taken over."""
    brecq.quantize(model, x, config(tuning=2.0), run_dir=tmp_path)
    for tuning, resumed in ((2.0, True), (1.0, False)):
        result = brecq.quantize(model, x, config(tuning=tuning), run_dir=tmp_path, resume=True)
        assert [block.resumed for block in result.report.blocks] == [True] * len(BLOCKS) + [resumed]
        assert torch.equal(run(result.model, x), run(brecq.quantize(model, x, config(tuning=tuning)).model, x))
    result = brecq.quantize(model, x, config(tuning=0.0), run_dir=tmp_path, resume=True)
    assert [block.resumed for block in result.report.blocks] == [True] * len(BLOCKS)
    assert torch.equal(run(result.model, x), run(brecq.quantize(model, x, config(tuning=0.0)).model, x))


class Never(Progress):
    def start(self, blocks: object, steps: int, later: int = 0) -> None:
        raise AssertionError("work has started")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"resume": True}, ConfigError, "run_dir"),
        ({"submodule": "backbone"}, ConfigError, "no submodule 'backbone'"),
        ({"config": config(rules=(LayerRule("nothing", weights=8),))}, ConfigError, "no layer matches 'nothing'"),
        ({"config": config(blocks={"b": ["nothing"]})}, PartitionError, "'nothing' matches no module"),
        ({"calibration": []}, DataError, "no samples"),
        ({"calibration": torch.full((4, 3, 16, 16), float("nan"))}, DataError, "NaN"),
        ({"calibration": torch.randn(4, 5, 16, 16)}, DataError, "does not run on sample 0"),
        ({"model": nn.Sequential(nn.ReLU())}, ConfigError, "nothing to quantize"),
        ({"config": QuantConfig(rules=(LayerRule("*", 32, 32),))}, ConfigError, "nothing to quantize: weights and"),
    ],
)
def test_bad_input_is_an_error_before_any_work(model, x, arguments, error, message) -> None:
    given = {"model": model, "calibration": x, "config": config(), **arguments}
    with pytest.raises(error, match=message):
        brecq.quantize(given.pop("model"), given.pop("calibration"), given.pop("config"), progress=Never(), **given)


def test_inspect(model: nn.Module, x: Tensor) -> None:
    found = brecq.inspect(model, (x[:2],), config())
    assert [block.name for block in found.blocks] == BLOCKS
    assert found.blocks[1].layers == ("layer1.0.conv1", "layer1.0.conv2")
    assert len(found.scope) == 9 + 7 + 3 + 1
    stem, head = found.blocks[0], found.blocks[-1]
    assert (stem.parameters, stem.macs) == (8 * 27 + 8, 8 * 27 * 16 * 16)
    assert (head.parameters, head.macs) == (16 * 10 + 10, 16 * 10)
    assert sum(block.parameters for block in found.blocks) == sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if "bn" not in name and "downsample.1" not in name
    ) + sum(norm.num_features for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))
    inner = brecq.inspect(model, (x[:2],), config(), submodule="layer1")
    assert [block.name for block in inner.blocks] == ["0", "1"]


def test_macs_of_transposed_and_grouped_convolutions(networks: ModuleType) -> None:
    model = networks.build(networks.Signal)
    found = {block.name: block.macs for block in brecq.inspect(model, networks.inputs(model)).blocks}
    assert found == {"down": 8 * 16 * 20, "depthwise": 8 * 16 * 3, "up": 8 * 16 * 4 * 4, "out": 2 * 32 * 8}


class Flattening(nn.Module):
    """A convolution whose output is flattened: oneDNN may leave it in channels-last order, which has no such view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 4, 4), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


def test_flattening_does_not_depend_on_the_memory_format(tmp_path: Path) -> None:
    x = torch.randn(16, 3, 16, 16)
    config = QuantConfig(weights=4, activations=8, method="rtn")
    result = brecq.quantize(Flattening().eval(), x, config)
    loaded = brecq.load(result.save(tmp_path))
    with torch.no_grad():
        expected = result.model(x)
        assert torch.equal(loaded.model(x.contiguous(memory_format=torch.channels_last)), expected)
