"""Passes: cost, determinism, resuming, and activations that do not fit in memory."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from brecq.capture.export import capture
from brecq.checkpoint.resume import RunState
from brecq.config import QuantConfig, Recipe
from brecq.partition.blocks import extract
from brecq.partition.cut import partition
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.progress import Progress
from brecq.quant.fake_quant import ActivationFakeQuantize, WeightFakeQuantize
from brecq.reconstruct import passes
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.passes import END_TO_END, stages
from brecq.reconstruct.run import Run, seed_of
from brecq.report import BlockReport

PAPER = {"recipe": "paper", "activation_steps": 6}
RECIPES = {"joint": {}, "paper": PAPER}


class Killed(Exception):
    pass


class KilledIn(Progress):
    """Fails in the middle of block `index` of pass `number`."""

    def __init__(self, number: int, index: int) -> None:
        self.at, self.pass_number, self.index = (number, index), -1, -1

    def start(self, blocks: object, steps: int, later: int = 0) -> None:
        self.pass_number += 1

    def block(self, index: int, name: str) -> None:
        self.index = index

    def step(self, step: int, soft_loss: float, hard_loss: float | None) -> None:
        if (self.pass_number, self.index) == self.at:
            raise Killed


class Calls(Progress):
    def __init__(self) -> None:
        self.calls: list[object] = []

    def start(self, blocks: object, steps: int, later: int = 0) -> None:
        self.calls.append(("start", tuple(blocks), steps, later))

    def block(self, index: int, name: str) -> None:
        self.calls.append((index, name))

    def block_done(self, report: BlockReport) -> None:
        self.calls.append((report.name, report.stage))


def state(folder: Path, *, resume: bool = False) -> RunState:
    return RunState(folder, "config:1 weights:2", resume=resume)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_seed_gives_the_same_result(lab, recipe: str) -> None:
    first = lab.run(**RECIPES[recipe])
    assert lab.same(first, lab.run(**RECIPES[recipe]))
    assert not lab.same(first, lab.run(**RECIPES[recipe], seed=1))


def test_the_result_does_not_depend_on_the_state_of_torch(lab) -> None:
    first = lab.run()
    torch.manual_seed(1234)
    torch.randn(7)
    assert lab.same(first, lab.run())


@pytest.mark.parametrize(
    ("settings", "per_block"),
    [
        ({"method": "rtn"}, 2),
        ({}, 2),
        ({"loss": "fisher"}, 3),
        ({"joint": False, "activation_steps": 6}, 4),
        (PAPER, 5),  # two passes, and one for the Fisher information
    ],
    ids=["rtn", "fast", "fisher", "two stages", "paper"],
)
@pytest.mark.parametrize("granularity", ["layer", "block"])
def test_block_forwards_are_linear_in_the_number_of_blocks(lab, settings, per_block: int, granularity: str) -> None:
    config = lab.config(**{"steps": 2, **settings}, granularity=granularity)
    run = lab.run(config, samples=32)  # one batch: each call of a block is one block-forward
    assert run.forwards == per_block * len(run.network.blocks)


def test_measured_calls_outside_learning(lab) -> None:
    """The count is honest: rounding to nearest calls each block for two streams, its ranges and its error."""
    config = lab.config(method="rtn")
    _, network = lab.network(config)
    seen: dict[str, int] = {}
    for block in network.blocks:
        block.module.register_forward_pre_hook(
            lambda _m, inputs, name=block.name: seen.update({name: seen.get(name, 0) + len(inputs[0])})
        )
    cache = ActivationCache(torch.device("cpu"))
    passes.run(Run(network, lab.inputs(samples=32), config, cache))
    # the error is that of the four held out; blocks without a quantized activation of their own have no ranges to set
    assert set(seen.values()) <= {2 * 32 + 4, 3 * 32 + 4}
    assert len(seen) == len(network.blocks)


@pytest.fixture(scope="module")
def uninterrupted(lab):
    """The run of a recipe that nothing ends early, made once."""
    return cache(lambda recipe: lab.run(**RECIPES[recipe], memory_budget=0))


@pytest.mark.parametrize(
    ("recipe", "number", "index"),
    [("joint", 0, 0), ("joint", 0, 3), ("paper", 0, 2), ("paper", 1, 1), ("paper", 1, 2)],
)
def test_a_killed_run_resumed_ends_like_an_uninterrupted_one(
    lab, uninterrupted, tmp_path: Path, recipe: str, number: int, index: int
) -> None:
    settings = {**RECIPES[recipe], "memory_budget": 0}
    whole = uninterrupted(recipe)
    with pytest.raises(Killed):
        lab.run(**settings, state=state(tmp_path), progress=KilledIn(number, index), folder=tmp_path)
    blocks = len(whole.network.blocks)
    assert len(list((tmp_path / "blocks").glob("pass*"))) == number * blocks + index

    resumed = lab.run(**settings, state=state(tmp_path, resume=True), folder=tmp_path)
    assert lab.same(resumed, whole)
    assert [r.resumed for r in resumed.reports] == [i < number * blocks + index for i in range(len(whole.reports))]
    for a, b in zip(resumed.reports, whole.reports, strict=True):
        assert (a.name, a.stage, a.error_before, a.error_after) == (b.name, b.stage, b.error_before, b.error_after)
    assert not list(tmp_path.glob("*.bin"))


def test_a_finished_pass_is_not_run_again(lab, tmp_path: Path) -> None:
    whole = lab.run(**PAPER, state=state(tmp_path))
    again = lab.run(**PAPER, state=state(tmp_path, resume=True))
    assert lab.same(again, whole)
    assert again.forwards == len(whole.network.blocks)  # the Fisher information alone
    assert all(report.resumed for report in again.reports)


@pytest.mark.parametrize(("recipe", "name"), [("joint", "ResNet"), ("joint", "UNet"), ("paper", "ResNet")])
def test_the_memory_budget_changes_nothing(lab, tmp_path: Path, recipe: str, name: str) -> None:
    memory = lab.run(**RECIPES[recipe], name=name)
    files = lab.run(**RECIPES[recipe], name=name, memory_budget=0, folder=tmp_path)
    some = lab.run(**RECIPES[recipe], name=name, memory_budget=500_000, folder=tmp_path)
    assert memory.cache.peak["file"] == files.cache.peak["host"] == 0
    assert files.cache.peak["file"] > 500_000
    assert 0 < some.cache.peak["host"] <= 500_000
    assert some.cache.peak["file"] > 0
    assert lab.same(memory, files)
    assert lab.same(memory, some)
    assert list(tmp_path.iterdir()) == []


def test_files_are_gone_after_an_error(lab, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        lab.run(memory_budget=0, progress=KilledIn(0, 2), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_stages_learn_weights_then_step_sizes(lab) -> None:
    weights = lab.run(joint=False, activation_steps=0, steps=12)
    both = lab.run(joint=False, activation_steps=12, steps=12)
    assert [report.stage for report in both.reports] == ["weights"] * 5 + ["activations"] * 5
    assert [report.steps for report in both.reports] == [12] * 10
    first, second = weights.learned(), both.learned()
    codes = [name for name in first if name.endswith("codes")]
    assert all(torch.equal(first[name], second[name]) for name in codes)  # rounding is settled in the first stage
    scales = [name for name in first if name.endswith("scale") and "weight" not in name]
    assert any(not torch.equal(first[name], second[name]) for name in scales)


def test_weights_only_and_activations_only(lab) -> None:
    weights = lab.run(activations=32)
    assert not any(isinstance(module, ActivationFakeQuantize) for module in weights.graph.modules())
    assert weights.reports[1].error_after < weights.reports[1].error_before
    activations = lab.run(weights=32, activations=3)
    assert not any(isinstance(module, WeightFakeQuantize) for module in activations.graph.modules())
    assert activations.reports[1].error_after < activations.reports[1].error_before


def test_a_quantizer_that_blocks_apart_share_fits_all_its_tensors(lab) -> None:
    """The encoder's features are positive, the decoder's that they are concatenated with are not."""
    run = lab.run(name="UNet", weights=32, activations=8, method="rtn")
    errors = {report.name: report.error_after for report in run.reports}
    assert max(errors.values()) < 1e-3
    assert run.forwards == 3 * len(run.network.blocks)  # one more, for their ranges


def test_resuming_with_shared_quantizers(lab, tmp_path: Path) -> None:
    whole = lab.run(name="UNet", steps=10)
    with pytest.raises(Killed):
        lab.run(name="UNet", steps=10, state=state(tmp_path), progress=KilledIn(0, 4))
    resumed = lab.run(name="UNet", steps=10, state=state(tmp_path, resume=True))
    assert [report.resumed for report in resumed.reports] == [True] * 4 + [False] * 4
    assert lab.same(resumed, whole)


def test_progress_is_told_everything(lab) -> None:
    progress = Calls()
    run = lab.run(**PAPER, steps=3, tuning=0.7, progress=progress)
    names = tuple(block.name for block in run.network.blocks)
    expected: list[object] = []
    tuning = 5 * 2  # as many block-steps as two steps of the whole network
    for stage, steps, later in (("weights", 3, 5 * 6 + tuning), ("activations", 6, tuning)):
        expected.append(("start", names, steps, later))
        for index, name in enumerate(names):
            expected += [(index, name), (name, stage)]
    expected += [("start", (END_TO_END,), 2, 0), (0, END_TO_END), (END_TO_END, "tuning")]
    assert progress.calls == expected


@pytest.mark.parametrize("samples", [1, 5, 65])
def test_few_samples(lab, samples: int) -> None:
    run = lab.run(samples=samples, steps=3)
    assert all(report.error_after <= report.error_before for report in run.reports)


@pytest.mark.parametrize("name", ["UNet", "FPN", "TwoBranch", "ViT", "Signal", "Functional"])
def test_blocks_with_several_inputs_and_outputs_are_reconstructed(lab, name: str) -> None:
    run = lab.run(name=name, steps=20, weights=3, activations=8)
    before = sum(report.error_before for report in run.reports)
    after = sum(report.error_after for report in run.reports)
    assert after < 0.95 * before


def test_stages() -> None:
    assert stages(QuantConfig(method="rtn")) == [("rtn", 0)]
    fast = Recipe.preset("fast")
    assert stages(QuantConfig(recipe=fast)) == [("joint", fast.steps)]
    assert stages(QuantConfig(recipe=Recipe.preset("paper"))) == [("weights", 20_000), ("activations", 5_000)]


def test_seeds_of_different_purposes_differ() -> None:
    seeds = {seed_of(0), seed_of(1), seed_of(0, 0, 1), seed_of(0, 1, 0), seed_of(0, "fisher"), seed_of(0, 11)}
    assert len(seeds) == 6
    assert seed_of(3, 1, 2) == seed_of(3, 1, 2)


@pytest.mark.slow  # tests/test_accuracy.py sees it too, on a smaller network
def test_errors_of_a_trained_network_go_down(lab, networks: ModuleType, shared_data: Path) -> None:
    """ResNet-20 on CIFAR-10, 2-bit weights, 4-bit activations: 60 steps a block halve the error of the network."""
    model = networks.CifarResNet().eval()
    model.load_state_dict(load_file(shared_data / "weights" / "cifar10_resnet20.safetensors"))
    with np.load(shared_data / "cifar10.npz") as arrays:
        pixels = torch.from_numpy(arrays["x_train"][:128]).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    x = (pixels - mean) / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    graph = capture(model, (x[:2],))
    reports = {}
    for method in ("rtn", "reconstruct"):
        config = lab.config(method=method, steps=60, weights=2, activations=4)
        prepared = prepare(copy.deepcopy(graph), BrecqQuantizer(config))
        network = extract(prepared, partition(prepared))
        cache = ActivationCache(torch.device("cpu"))
        reports[method], _ = passes.run(Run(network, (x,), config, cache))
    learned = [r for r in reports["reconstruct"] if r.name.startswith("layer")]
    assert len(learned) == 9
    for report in learned:
        assert report.error_after < 0.8 * report.error_before, report
    # what reaches the output, errors of all blocks before included
    assert reports["reconstruct"][-1].error_after < 0.5 * reports["rtn"][-1].error_after
