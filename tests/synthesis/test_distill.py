"""Distillation from end to end, on small networks."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from torch import nn

import brecq
from brecq import DistillConfig
from brecq.data.preprocessing import Preprocessing
from brecq.errors import CheckpointError, ConfigError
from brecq.progress import Progress
from brecq.report import BlockReport
from brecq.synthesis import distill as module
from brecq.synthesis.distill import synthesize

QUICK = DistillConfig(steps=30, batch_size=8)
GENERATOR: dict[str, Any] = {"latent": "generator", "start": "noise", "lr": 0.1}


class Recorder(Progress):
    """Counts finished batches, and may break off after one."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[int] = []
        self.reports: list[BlockReport] = []
        self.stop_after = stop_after

    def step(self, step: int, soft_loss: float, hard_loss: float | None) -> None:
        self.steps.append(step)

    def block_done(self, report: BlockReport) -> None:
        self.reports.append(report)
        if len(self.reports) == self.stop_after:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"latent": "pixels", "coarse": 0.0}, {**GENERATOR, "generator_width": 8}, {"target": "class"},
        {"start": "noise"}, {"target": "entropy", "swing": False, "shift": 0, "flip": False},
        {"smoothness": 0.01, "coarse": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_every_variant_comes_nearer_to_the_statistics(
    resnet: nn.Module, preprocessing: Preprocessing, changes: dict[str, Any]
) -> None:
    made = synthesize(resnet, 16, QUICK.replace(**changes), preprocessing=preprocessing)
    assert made.inputs.shape == (16, 3, 16, 16)
    assert made.inputs.dtype == torch.float32
    low, high = preprocessing.valid_range
    assert (made.inputs >= low - 1e-5).all()
    assert (made.inputs <= high + 1e-5).all()
    assert len(made.batches) == 2
    assert all(batch.error_after < batch.error_before for batch in made.batches)
    before, after = (
        sum(getattr(layer, f"mean_{when}") + getattr(layer, f"std_{when}") for layer in made.layers)
        for when in ("before", "after")
    )
    assert after < before
    assert [layer.layer for layer in made.layers][:2] == ["bn1", "layer1.0.bn1"]


def test_a_setting_changes_the_result(resnet: nn.Module, preprocessing: Preprocessing) -> None:
    base = QUICK.replace(steps=4)

    def run(config: DistillConfig) -> tuple[float, ...]:
        return tuple(brecq.distill(resnet, 4, config, preprocessing=preprocessing).flatten().tolist())

    changes: list[dict[str, Any]] = [
        {"seed": 1}, {"lr": 0.2}, {"coarse": 0.0}, {"input_weight": 0.0}, {"smoothness": 1.0}, {"swing": False},
        {"shift": 0}, {"flip": False}, {"target": "class"}, {"target": "class", "target_weight": 1.0},
        {"target": "entropy"}, {"latent": "pixels"}, {"start": "noise"}, GENERATOR,
        {**GENERATOR, "generator_lr": 0.1}, {**GENERATOR, "generator_width": 4}, {"steps": 5}, {"batch_size": 2},
    ]  # fmt: skip
    settings = {field.name for field in dataclasses.fields(DistillConfig)}
    assert {name for change in changes for name in change} == settings - {"name"}
    results = {run(base.replace(**change)) for change in ({}, *changes)}
    assert len(results) == len(changes) + 1


def test_the_same_seed_gives_the_same_inputs_and_leaves_the_model_alone(
    resnet: nn.Module, preprocessing: Preprocessing
) -> None:
    state = copy.deepcopy(resnet.state_dict())
    for changes in ({}, GENERATOR):
        config = QUICK.replace(steps=6, **changes)
        first = brecq.distill(resnet, 12, config, preprocessing=preprocessing)
        torch.manual_seed(99)  # whatever state the global generator is in
        second = brecq.distill(resnet, 12, config, preprocessing=preprocessing)
        assert torch.equal(first, second)
        assert not torch.equal(first[:6], first[6:])  # batches differ
    assert all(torch.equal(value, state[name]) for name, value in resnet.state_dict().items())
    assert all(parameter.requires_grad for parameter in resnet.parameters())
    assert not any(m._forward_pre_hooks for m in resnet.modules())


def test_a_killed_run_continues_after_the_last_finished_batch(
    resnet: nn.Module, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    config = QUICK.replace(steps=6)
    whole = brecq.distill(resnet, 20, config, preprocessing=preprocessing)
    with pytest.raises(KeyboardInterrupt):
        synthesize(resnet, 20, config, preprocessing=preprocessing, run_dir=tmp_path, progress=Recorder(stop_after=2))
    recorder = Recorder()
    options: dict[str, Any] = {"preprocessing": preprocessing, "run_dir": tmp_path, "resume": True}
    made = synthesize(resnet, 20, config, progress=recorder, **options)
    assert torch.equal(made.inputs, whole)
    assert [report.resumed for report in recorder.reports] == [True, True, False]
    assert recorder.steps == [1, 6]
    with pytest.raises(CheckpointError, match="different config"):
        synthesize(resnet, 20, config.replace(seed=1), **options)
    brecq.distill(resnet, 20, config, **options)
    assert not (tmp_path / "blocks").exists()


@pytest.mark.parametrize("name", ["mobilenetv2_050", "efficientnet_lite0"])
def test_networks_of_libraries_with_batch_norms_of_their_own(name: str, networks: ModuleType) -> None:
    model = networks.build(lambda: timm.create_model(name, num_classes=5))
    norms = [key for key, part in model.named_modules() if isinstance(part, timm.layers.BatchNormAct2d)]
    made = synthesize(model, 4, QUICK.replace(steps=2, coarse=0.5), shape=(3, 32, 32))
    assert [layer.layer for layer in made.layers] == norms
    assert len(norms) > 40


def test_signals_are_distilled_by_their_shape(networks: ModuleType) -> None:
    model = networks.build(networks.Signal)
    made = synthesize(model, 8, QUICK, shape=(4, 32))
    assert made.inputs.shape == (8, 4, 32)
    assert made.batches[0].error_after < made.batches[0].error_before


def test_a_network_that_says_what_it_takes(networks: ModuleType, preprocessing: Preprocessing) -> None:
    model = networks.build(networks.ResNet)
    with pytest.raises(ConfigError, match=r"does not say what its inputs look like.*--mean, --std and --size"):
        brecq.distill(model, 4, QUICK)
    model.pretrained_cfg = {"input_size": (3, 8, 8)}
    assert brecq.distill(model, 4, QUICK.replace(steps=2)).shape == (4, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"the preprocessing makes \(3, 16, 16\)"):
        brecq.distill(model, 4, QUICK, preprocessing=preprocessing, shape=(3, 8, 8))
    with pytest.raises(ConfigError, match=r"shape is \(3, 0\)"):
        brecq.distill(model, 4, QUICK, shape=(3, 0))


def test_pictures_that_are_only_drawn_need_no_batch_norm(networks: ModuleType, preprocessing: Preprocessing) -> None:
    leaves = DistillConfig.preset("leaves").replace(batch_size=8)
    model = networks.build(networks.ViT)
    made = synthesize(model, 12, leaves, preprocessing=preprocessing)
    assert made.inputs.shape == (12, 3, 16, 16)
    assert (made.layers, made.batches) == ([], [])
    low, high = preprocessing.valid_range
    assert (made.inputs >= low).all()
    assert (made.inputs <= high).all()
    assert torch.equal(made.inputs, brecq.distill(model, 12, leaves, preprocessing=preprocessing))
    assert not torch.equal(made.inputs, brecq.distill(model, 12, leaves.replace(seed=1), preprocessing=preprocessing))
    assert len({tuple(picture.flatten().tolist()) for picture in made.inputs}) == 12
    with pytest.raises(ConfigError, match=r"nothing says how a picture becomes an input \(3, 16, 16\)"):
        brecq.distill(model, 4, leaves, shape=(3, 16, 16))


def test_distillation_starts_from_the_pictures_that_are_drawn(resnet: nn.Module, preprocessing: Preprocessing) -> None:
    drawn = brecq.distill(resnet, 8, DistillConfig.preset("leaves"), preprocessing=preprocessing)
    still = DistillConfig(steps=1, coarse=0.0, lr=1e-9)
    torch.testing.assert_close(brecq.distill(resnet, 8, still, preprocessing=preprocessing), drawn, rtol=0, atol=1e-4)


def test_what_cannot_be_distilled(
    networks: ModuleType, resnet: nn.Module, preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "optimize_batch", None)  # errors come before any long work

    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = networks.build(networks.ResNet)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.net(x + y)

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = networks.build(networks.ResNet)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    unet = networks.build(networks.UNet)
    for model, n, changes, message in (
        (networks.build(networks.ViT), 4, {}, "no batch norm, so that nothing in it remembers"),
        (tokens, 4, {}, "token ids cannot be distilled"),
        (TwoInputs(), 4, {}, "needs a network with one floating-point input"),
        (Unused(), 4, {}, "takes part in a forward pass"),
        (unet, 4, {"target": "class"}, "output is no logits"),
        (networks.ResNet().eval(), 4, {}, "as before training"),
        (resnet, 1, {}, "n is 1; distill at least 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            brecq.distill(model, n, QUICK.replace(**changes), preprocessing=preprocessing)
    with pytest.raises(ConfigError, match="set coarse=0"):
        brecq.distill(nn.Sequential(resnet, nn.Flatten()), 4, QUICK, shape=(3, 1, 1))
    with pytest.raises(ConfigError, match="resume=True needs run_dir"):
        brecq.distill(resnet, 4, QUICK, preprocessing=preprocessing, resume=True)


def test_a_diverging_run_ends_with_an_error(resnet: nn.Module) -> None:
    model = copy.deepcopy(resnet)
    with torch.no_grad():
        next(model.parameters()).mul_(1e30)  # the squares of what follows are infinite
    with pytest.raises(ConfigError, match=r"became .*; lower lr"):
        brecq.distill(model, 4, QUICK.replace(latent="pixels"), shape=(3, 16, 16))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(resnet: nn.Module, preprocessing: Preprocessing) -> None:
    for changes in ({}, GENERATOR):
        made = synthesize(resnet, 8, QUICK.replace(**changes), preprocessing=preprocessing, device="cuda")
        assert made.inputs.device.type == "cpu"
        assert made.batches[0].error_after < made.batches[0].error_before
