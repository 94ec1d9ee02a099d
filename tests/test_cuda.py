"""Whole runs on a CUDA device: the same as on the CPU up to rounding, the same bits every time, and nothing waits.

All tests are skipped without a device. `benchmarks/gpu.py` runs them, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, Recipe
from brecq.devices import device_of
from brecq.errors import DataError
from brecq.progress import Progress
from brecq.ranks import Part
from brecq.reconstruct import optimize, tune
from brecq.reconstruct.cache import ActivationCache
from brecq.report import BlockReport
from brecq.synthesis.config import DistillConfig

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
RECIPES = ("instant", "fast", "paper")


@pytest.fixture
def model(networks: ModuleType) -> nn.Module:
    return networks.build(networks.ResNet)


@pytest.fixture
def x(networks: ModuleType, model: nn.Module) -> Tensor:
    return networks.inputs(model, 48)[0]


def config(recipe: str = "fast", **changes: Any) -> QuantConfig:
    own = {name: changes.pop(name) for name in list(changes) if name in QuantConfig.__dataclass_fields__}
    settings = {"range_candidates": 20, "batch_size": 16, **changes}
    if recipe != "instant":
        settings = {"steps": 8, "activation_steps": 4 if recipe == "paper" else 0, **settings}
    return QuantConfig(**{"activations": 4, **own}, recipe=Recipe.preset(recipe).replace(**settings))


def run(module: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return module(*(value.to(device_of(module)) for value in inputs)).cpu()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["ResNet", "ViT"])
def test_a_run_is_that_of_the_cpu_and_the_same_every_time(networks: ModuleType, name: str, recipe: str) -> None:
    model = networks.build(getattr(networks, name))
    inputs = networks.inputs(model, 48)
    data = inputs[0] if len(inputs) == 1 else inputs
    found, again, cpu = (brecq.quantize(model, data, config(recipe), device=d) for d in (DEVICE, DEVICE, "cpu"))
    assert found.digest() == again.digest()
    assert device_of(found.model).type == device_of(model).type == "cpu"
    expected = run(model, *inputs)
    assert distance(run(found.model, *inputs), expected) < 1.2 * distance(run(cpu.model, *inputs), expected) + 0.01
    assert any("kernels" in note for note in found.report.notes)


@pytest.mark.parametrize(
    "name", ["MobileNet", "UNet", "ConcatNet", "SENet", "FPN", "Signal", "TwoBranch", "Standardized"]
)
def test_networks_of_every_shape(networks: ModuleType, name: str) -> None:
    model = networks.build(getattr(networks, name))
    inputs = networks.inputs(model, 16)
    data = [inputs] if len(inputs) > 1 else inputs[0]
    found = [brecq.quantize(model, data, config(steps=3, bias_lr=0.01), device=DEVICE) for _ in range(2)]
    assert found[0].digest() == found[1].digest()


@pytest.mark.parametrize("device", [DEVICE, "cpu", "auto"])
def test_a_network_on_the_device_stays_there(model: nn.Module, x: Tensor, device: str, tmp_path: Path) -> None:
    here = brecq.quantize(model, x, config("instant"), device=device)
    there = brecq.quantize(model.to(DEVICE), x, config("instant"), device=device)
    assert device_of(model).type == device_of(there.model).type == DEVICE
    assert distance(run(there.model, x), run(here.model, x)) < 0.2
    assert brecq.evaluate(there.model, x, reference=model, device=device).sqnr > 5
    assert device_of(there.model).type == DEVICE
    there.save(tmp_path / "result")
    loaded = brecq.load(tmp_path / "result")
    assert loaded.digest() == there.digest()
    assert distance(run(loaded.model, x), run(there.model, x)) < 1e-2


def test_calibration_data_may_be_on_the_device(model: nn.Module, x: Tensor) -> None:
    assert (
        brecq.quantize(model, x.to(DEVICE), config("instant"), device=DEVICE).digest()
        == brecq.quantize(model, x, config("instant"), device=DEVICE).digest()
    )
    assert brecq.evaluate(model, x.to(DEVICE), reference=model).agreement == 100


def test_what_a_graph_makes_is_made_on_its_device(x: Tensor) -> None:
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).flatten(2).transpose(1, 2)
            first = torch.zeros(x.shape[0], 1, 8, device=x.device)
            return self.fc(torch.cat([first, tokens + torch.arange(8, device=x.device)], 1))

    model = Made().eval()
    for home in ("cpu", DEVICE):
        result = brecq.quantize(model.to(home), x, config("fast", steps=3), device=DEVICE)
        assert distance(run(result.model, x), run(model, x)) < 0.5


class Stop(Progress):
    def __init__(self, after: int) -> None:
        self.after = after

    def block_done(self, report: BlockReport) -> None:
        self.after -= 1
        if not self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [2, 5])
def test_a_killed_run_goes_on_with_the_same_bits(model: nn.Module, x: Tensor, tmp_path: Path, after: int) -> None:
    whole = brecq.quantize(model, x, config(), device=DEVICE)
    with pytest.raises(KeyboardInterrupt):
        brecq.quantize(model, x, config(), device=DEVICE, run_dir=tmp_path, progress=Stop(after))
    resumed = brecq.quantize(model, x, config(), device=DEVICE, run_dir=tmp_path, resume=True)
    assert resumed.digest() == whole.digest()
    assert any(block.resumed for block in resumed.report.blocks)


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_results_on_the_device_are_exported(model: nn.Module, x: Tensor, tmp_path: Path, format: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    result = brecq.quantize(model.to(DEVICE), x, config("instant", activations=8, weights=8), device=DEVICE)
    path = tmp_path / f"net.{format}"
    brecq.export(result, path, format)
    assert path.stat().st_size > 0
    assert device_of(result.model).type == DEVICE


def test_the_integer_simulation_runs_where_its_kernels_are(model: nn.Module, x: Tensor) -> None:
    result = brecq.quantize(model.to(DEVICE), x, config("instant", activations=8, weights=8), device=DEVICE)
    found = brecq.evaluate(brecq.simulate(result), x, reference=result.model)
    assert found.sqnr > 15
    assert device_of(result.model).type == DEVICE


def test_a_submodule_is_put_back_on_the_device(model: nn.Module, x: Tensor) -> None:
    for home in ("cpu", DEVICE):
        result = brecq.quantize(model.to(home), x, config("instant"), submodule="layer1", device=DEVICE)
        assert distance(run(result.model, x), run(model, x)) < 0.5


@pytest.mark.parametrize(
    "config", [DistillConfig(steps=4, batch_size=8), DistillConfig(steps=4, coarse=0.5, batch_size=4)]
)
def test_distilled_inputs_are_the_same_every_time(model: nn.Module, config: DistillConfig) -> None:
    made = [brecq.distill(model.to(home), 8, config, shape=(3, 16, 16), device=DEVICE) for home in ("cpu", DEVICE)]
    assert made[0].device.type == "cpu"
    assert torch.equal(*made)


@pytest.mark.parametrize("quality", ["fast", "reconstructed"])
def test_sensitivities_and_a_search(model: nn.Module, x: Tensor, quality: str) -> None:
    pytest.importorskip("scipy")
    tables = [
        brecq.measure_sensitivity(model.to(home), x, config(steps=4), bits=(2, 4), quality=quality, device=device)
        for home, device in (("cpu", DEVICE), (DEVICE, DEVICE), ("cpu", "cpu"))
    ]
    first, again, cpu = ([term.losses["fisher"] for term in table.terms] for table in tables)
    assert first == again
    assert max(abs(a - b) / max(b, 1e-12) for a, b in zip(first, cpu, strict=True)) < (
        0.05 if quality == "fast" else 3
    )
    allocation = brecq.search(tables[0], "size=6KB")
    learned = tables[0].codes
    result = brecq.quantize(model, x, config(), allocation=allocation, learned=learned, device=DEVICE)
    assert distance(run(result.model, x), run(model, x)) < 0.9


@pytest.mark.parametrize("autocast", ["off", "bf16"])
@pytest.mark.parametrize("name", ["ResNet", "ViT"])
@pytest.mark.parametrize("recipe", ["fast", "paper"])
@pytest.mark.parametrize("place", ["device", "host"])
def test_nothing_waits_in_the_step_loop(
    networks: ModuleType, monkeypatch: pytest.MonkeyPatch, recipe: str, name: str, place: str, autocast: str
) -> None:
    def unwaiting(owner: type, name: str, first: int) -> None:
        original: Callable[..., Any] = getattr(owner, name)
        seen = []

        def guarded(*args: Any, **kwargs: Any) -> Any:
            seen.append(1)
            torch.cuda.set_sync_debug_mode("error" if len(seen) > first else "default")
            try:
                return original(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(owner, name, guarded)

    unwaiting(optimize.Reconstruction, "_step", 2)
    unwaiting(tune.Tuning, "_step", 2)
    unwaiting(optimize.Readout, "put", 1)
    if place == "host":
        keep_on_host(monkeypatch)
    model = networks.build(getattr(networks, name))
    brecq.quantize(model, networks.inputs(model, 32)[0], config(recipe, autocast=autocast, steps=12), device=DEVICE)


def keep_on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ActivationCache.__init__

    def __init__(self: ActivationCache, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.limits["device"] = 0

    monkeypatch.setattr(ActivationCache, "__init__", __init__)


def test_where_activations_wait_changes_nothing(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    on_device = brecq.quantize(model, x, config(), device=DEVICE)
    with monkeypatch.context() as patch:
        patch.setattr("brecq.pipeline.left_for_caches", lambda *_: 0)
        in_files = brecq.quantize(model, x, config(), device=DEVICE)
    keep_on_host(monkeypatch)
    on_host = brecq.quantize(model, x, config(), device=DEVICE)
    assert on_device.digest() == on_host.digest() == in_files.digest()


def test_compiled_kernels_learn_the_same(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = brecq.quantize(model, x, config(), device=DEVICE)
    monkeypatch.setenv("BRECQ_KERNELS", "compiled")
    found, again = (brecq.quantize(model, x, config(), device=DEVICE) for _ in range(2))
    assert found.digest() == again.digest()
    assert distance(run(found.model, x), run(expected.model, x)) < 0.2


def test_out_of_memory_is_survived_and_told(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    step = optimize.Reconstruction._step

    def scarce(self: Any, number: int, part: Part, learning: Any) -> Tensor:
        if len(part.places) > 8 * self.parts or self.streams.cache.used("device"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, number, part, learning)

    monkeypatch.setattr(optimize.Reconstruction, "_step", scarce)
    with pytest.warns(RuntimeWarning, match="ran out of memory"):
        result = brecq.quantize(model, x, config(), device=DEVICE)
    assert any("in 2 parts" in note for note in result.report.notes)
    assert any("moved to the host" in note for note in result.report.notes)
    assert distance(run(result.model, x), run(model, x)) < 0.5


def test_evaluating_leaves_networks_where_they_were(model: nn.Module, x: Tensor) -> None:
    other = copy.deepcopy(model).to(DEVICE)
    found = brecq.evaluate(model, x, reference=other, device="auto")
    assert found.sqnr > 40
    assert (device_of(model).type, device_of(other).type) == ("cpu", DEVICE)


def test_inputs_that_do_not_fit_are_still_refused(model: nn.Module, x: Tensor) -> None:
    with pytest.raises(DataError, match="does not run"):
        brecq.quantize(model.to(DEVICE), x[:, :2], config(), device=DEVICE)
