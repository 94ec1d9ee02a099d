"""One GPU looked at from all sides, in less than eight minutes: right, the same every time, how fast.

    python benchmarks/gpu.py --seconds 400
    python benchmarks/gpu.py --only "fast vit" "profile"     # cells by a part of their name
    python benchmarks/gpu.py --tiny                          # on the CPU, in seconds: does the script itself work
    python benchmarks/gpu.py --table                         # the tables of a file that is there

Nothing is needed but the project: weights are random (with batch norms that have seen the inputs), inputs generated,
and accuracy is that of a small network that is trained on the spot. The cells are in order of importance; each is
written to benchmarks/results/gpu.json as soon as it is known, a failed one with its error, and those that the time is
too short for are listed. Times of whole runs are measured with few steps a block and extrapolated: both are given.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import platform
import pstats
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, Recipe
from brecq.graph import environment
from brecq.progress import Progress
from brecq.quant import kernels
from brecq.reconstruct.cache import ActivationCache
from brecq.report import BlockReport

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import networks  # noqa: E402  the small networks of the tests

Values = dict[str, Any]

SAME = 0.5
"""Largest difference in dB between the SQNR of a network quantized on CUDA and of the one quantized on the CPU, both
against the float network. Codes need not be equal: which are best depends on the inputs, and where two choices are
nearly as good, float32 noise decides. On the CPU, inputs that differ by 1e-5 of themselves, as much as cuDNN's
convolutions by Winograd's algorithm or by Fourier transforms add, change 19 % of the codes of the network that is
measured here and move its SQNR by 0.2 dB. Given the same moments, CPU and CUDA choose the same codes
(tests/quant/compensate/test_solve.py)."""

COMPUTING = re.compile(
    r"conv|gemm|cudnn|fft2d|mult_and_sum_complex|cutlass|xmma|sm\d0_|implicit|winograd|wgrad|dgrad|fprop|attention|fmha|flash|matmul"
)
"""Kernels that convolve or multiply matrices, by their names."""


class Bench:
    """What is measured on, and where the results go."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.tiny, self.path, self.limit = options.tiny, options.results, options.seconds
        self.began = time.perf_counter()
        self.device = torch.device("cuda" if torch.cuda.is_available() and not options.tiny else "cpu")
        self.samples = 16 if self.tiny else options.samples
        self.steps = 4 if self.tiny else options.steps
        self.size = 32 if self.tiny else 224
        self.results: Values = {"machine": machine(self.device), "samples": self.samples, "cells": {}, "left out": []}

    @property
    def left(self) -> float:
        return self.limit - (time.perf_counter() - self.began)

    def save(self) -> None:
        self.results["seconds"] = round(time.perf_counter() - self.began, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @cached_property
    def inputs(self) -> Tensor:
        """Smooth noise [N, 3, H, W], mean 0 and deviation 1, on the CPU."""
        generator = torch.Generator().manual_seed(1)
        coarse = torch.randn(self.samples, 3, max(4, self.size // 8), max(4, self.size // 8), generator=generator)
        fine = F.interpolate(coarse, size=(self.size, self.size), mode="bicubic")
        return (fine + 0.3 * torch.randn(fine.shape, generator=generator)).div(fine.std())

    @cached_property
    def trained(self) -> nn.Module:
        """A small network that tells gratings apart."""
        return networks.train(networks.MobileNet, 10 if self.tiny else 100)

    @cache  # noqa: B019  there is one of them
    def network(self, name: str) -> nn.Module:
        """A network by its short name, in eval mode on the CPU, its batch norms set by what passes."""
        torch.manual_seed(0)
        model = NETWORKS[name]() if not self.tiny else TINY.get(name, networks.ResNet)()
        if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            model.to(self.device).train()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = None
            with torch.no_grad():
                model(self.inputs[:16].to(self.device))
        return model.cpu().eval()


def machine(device: torch.device) -> Values:
    found: Values = {"torch": torch.__version__, "python": platform.python_version(), "processors": os.cpu_count()}
    found["brecq"] = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"card": card.name, "memory": f"{card.total_memory / 2**30:.0f} GiB", "cuda": torch.version.cuda}
    return {**found, "device": device.type, "kernels": kernels.backend(device)}


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)()

    return make


def _timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name)

    return make


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": _torchvision("resnet18"),
    "vit_b_16": _timm("vit_base_patch16_224"),
    "mobilenet_v2": _torchvision("mobilenet_v2"),
    "resnet50": _torchvision("resnet50"),
    "efficientnet_lite0": _timm("tf_efficientnet_lite0"),
}
TINY: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": networks.MobileNet,
    "efficientnet_lite0": networks.MobileNet,
}


class Clock(Progress):
    """Notes when what happened: seconds a step within each block, the time of each stage."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self.sync, self.stages, self.passes, self.began = sync, {}, [], time.perf_counter()
        self._stage, self._since = "before", self.began
        self._marks: list[tuple[int, float]] = []

    def stage(self, text: str) -> None:
        self._turn(text)

    def _turn(self, text: str) -> None:
        now = time.perf_counter()
        self.stages[self._stage] = self.stages.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = text, now

    def start(self, blocks: Any, steps: int, later: int = 0, loss: str = "soft") -> None:
        self._turn("blocks")
        self.passes.append({"blocks": len(blocks), "steps": steps, "seconds": 0.0, "per step": 0.0})

    def block(self, index: int, name: str) -> None:
        self._marks = []

    def step(self, step: int, soft_loss: float, hard_loss: float | None) -> None:
        self._marks.append((step, time.perf_counter()))

    def block_done(self, report: BlockReport) -> None:
        self.passes[-1]["seconds"] += report.seconds
        if len(self._marks) > 1:
            (first, start), (last, stop) = self._marks[0], self._marks[-1]
            self.passes[-1]["per step"] += (stop - start) / (last - first)

    def close(self) -> None:
        self._turn("after")


def quantized(
    bench: Bench, model: nn.Module, data: Tensor, recipe: Recipe, device: Any = None, **changes: Any
) -> tuple[brecq.QuantResult, Values]:
    """The result, and what it took."""
    config = QuantConfig(**{"weights": 4, "activations": 8, "recipe": recipe, **changes})
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock, began, busy = Clock(bench.sync), time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = brecq.quantize(model, data, config, progress=clock, device=device or bench.device)
    bench.sync()
    took: Values = {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu seconds": round(time.process_time() - busy, 2),
        "passes": clock.passes,
        "stages": {name: round(seconds, 2) for name, seconds in clock.stages.items()},
        "warnings": sorted({str(each.message).splitlines()[0][:160] for each in caught})[:8],
    }
    if bench.device.type == "cuda":
        took["peak bytes"] = torch.cuda.max_memory_allocated()
    errors = [block.error_after for block in result.report.blocks if block.stage != "tuning"]
    took["mean block error"] = sum(errors) / len(errors)
    return result, took


def short(recipe: str, steps: int) -> Recipe:
    """The preset with few steps."""
    preset = Recipe.preset(recipe)
    if recipe == "instant":
        return preset
    return preset.replace(steps=steps, activation_steps=0 if preset.joint else steps)


def extrapolated(recipe: str, took: Values) -> float:
    """Seconds of the whole preset: what was measured, with its steps in place of the few."""
    preset = Recipe.preset(recipe)
    wanted = [preset.steps, preset.tuning_steps] if preset.joint else [preset.steps, preset.activation_steps]
    more = sum(one["per step"] * (all_ - one["steps"]) for one, all_ in zip(took["passes"], wanted, strict=False))
    return round(took["seconds"] + more, 1)


class CudaTests:
    """The tests marked `cuda`, in processes of their own, beside the cells that measure no time."""

    def __init__(self, bench: Bench, wanted: bool) -> None:
        tests = sorted((ROOT / "tests").rglob("test_*.py"))
        files = [str(path) for path in tests if "mark.cuda" in path.read_text(encoding="utf-8")]
        self.until = time.perf_counter() + min(240.0, 0.6 * bench.limit)
        self.output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  read when the process ends
        several = ["-n", str(min(7, os.cpu_count() or 1)), "--dist", "worksteal"]
        options = ["-m", "cuda", "-v", "-p", "no:cacheprovider", "--tb=short", *several]
        self.process = None
        if wanted and not bench.tiny:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, stdout=self.output,
                stderr=subprocess.STDOUT, text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    def result(self) -> Values:
        if self.process is None:
            return {"ok": True, "summary": "not run"}
        try:
            self.process.wait(max(0.1, self.until - time.perf_counter()))
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGINT)  # it still says what failed so far
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            self.process.kill()
            self.process.wait()
        self.output.seek(0)
        text = self.output.read()
        summary = (text.strip().splitlines() or [""])[-1]
        failed = self.process.returncode != 0
        return {"ok": not failed, "summary": summary, "output": text[-16000:] if failed else text[-1500:]}


def equality(bench: Bench, recipe: str) -> Values:
    """The same network quantized on the CPU and on CUDA."""
    model, data = bench.trained, networks.gratings(64, seed=3)[0]
    chosen = short(recipe, bench.steps)
    ours, theirs = (quantized(bench, model, data, chosen, device=d)[0] for d in ("cpu", bench.device))
    codes = different = 0
    scales = 0.0
    state = theirs.converted.state_dict()
    for name, value in ours.converted.state_dict().items():
        other = state[name].to(value.device)
        if not value.is_floating_point() and not name.endswith("zero_point"):
            codes, different = codes + value.numel(), different + int((value != other).sum())
        elif name.endswith("_scale"):
            scales = max(scales, float(((value - other) / value).abs().max()))
    with torch.no_grad():
        floats, first, second = model(data), ours.converted(data), theirs.converted(data)
    ratios = {"CPU": decibels(floats, first), bench.device.type: decibels(floats, second)}
    return {
        "equal codes": 1 - different / codes,
        "scales differ by": scales,
        "sqnr": ratios,
        "sqnr of one against the other": decibels(first, second),
        "ok": abs(decibels(floats, first) - decibels(floats, second)) <= SAME,
    }


def decibels(expected: Tensor, found: Tensor) -> float:
    """The SQNR of `found`."""
    noise = (expected - found).double().square().sum()
    return 10 * torch.log10(expected.double().square().sum() / noise.clamp(min=1e-30)).item()


def determinism(bench: Bench, name: str, recipe: str, **changes: Any) -> Values:
    """Twice on the same device with the same seed: the same bits."""
    model, data = bench.network(name), bench.inputs[:64]
    chosen = short(recipe, min(bench.steps, 10))
    digests = {quantized(bench, model, data, chosen, **changes)[0].digest() for _ in range(2)}
    return {"ok": len(digests) == 1}


def speed(bench: Bench, name: str, recipe: str, **changes: Any) -> Values:
    """Seconds, memory and error of one recipe on one network."""
    chosen = short(recipe, bench.steps)
    result, took = quantized(bench, bench.network(name), bench.inputs, chosen, **changes)
    with torch.no_grad():
        rows = bench.inputs[:16]
        took["sqnr"] = decibels(bench.network(name)(rows), result.converted(rows))
    took["kernels"] = [note for note in result.report.notes if "kernels" in note]
    if recipe != "instant":
        took["extrapolated seconds"] = extrapolated(recipe, took)
    return took


class Enough(Exception):
    """What was to be profiled is over."""


class Profiler(Clock):
    """Profiles the device from one step to another of one block."""

    def __init__(self, sync: Callable[[], None], index: int, first: int) -> None:
        super().__init__(sync)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profile = torch.profiler.profile(activities=activities)
        self.wanted, self.first, self.index = index, first, -1
        self.running, self.steps, self.wall = False, 0, 0.0

    def block(self, index: int, name: str) -> None:
        super().block(index, name)
        self.index = index

    def step(self, step: int, soft_loss: float, hard_loss: float | None) -> None:
        if self.index == self.wanted and not self.running and not self.steps and step >= self.first:
            self.sync()
            self.profile.start()
            self.running, self.start_step, self.start_time = True, step, time.perf_counter()
        elif self.running:
            self.sync()
            self.wall = time.perf_counter() - self.start_time
            self.profile.stop()
            self.running, self.steps = False, step - self.start_step
            raise Enough


def profile(bench: Bench, name: str, index: int, **changes: Any) -> Values:
    """The device in the learning steps of one block: the share that is not convolutions and matrix products, and the
    share of time in which nothing runs there."""
    watched = Profiler(bench.sync, index, 1 if bench.tiny else 20)
    recipe = Recipe.preset("fast").replace(steps=max(bench.steps, 30), tuning=0.0, held_out=0.125)
    config = QuantConfig(4, 8, recipe=recipe, **changes)
    with suppress(Enough):
        brecq.quantize(bench.network(name), bench.inputs[:64], config, progress=watched, device=bench.device)
    events = watched.profile.key_averages()
    cuda = bench.device.type == "cuda"
    events = [event for event in events if "#" not in event.key]  # ranges of others
    on_device = [event for event in events if "CUDA" in str(event.device_type)] if cuda else events
    spent = {event.key: (event.self_device_time_total if cuda else event.self_cpu_time_total) for event in on_device}
    total = sum(spent.values())
    computing = sum(value for key, value in spent.items() if COMPUTING.search(key.lower()))
    top = sorted(spent.items(), key=lambda item: -item[1])[:14]
    return {
        "steps": watched.steps,
        "milliseconds a step": 1000 * watched.wall / max(watched.steps, 1),
        "device busy": total / 1e6 / watched.wall if watched.wall else None,
        "share not in convolutions and products": 1 - computing / total if total else None,
        "kernels a step": sum(event.count for event in on_device) / max(watched.steps, 1),
        "top": {key[:90]: round(value / total, 4) for key, value in top},
    }


def hot_spots(bench: Bench, name: str, recipe: str) -> Values:
    """Where the host spends its time in one recipe, by function."""
    model, data, chosen = bench.network(name), bench.inputs, short(recipe, 10)
    watched = cProfile.Profile()
    watched.enable()
    quantized(bench, model, data, chosen)
    watched.disable()
    text = io.StringIO()
    pstats.Stats(watched, stream=text).sort_stats("cumulative").print_stats("brecq|torch", 60)
    lines = [line.strip() for line in text.getvalue().splitlines() if re.match(r"\s+\d", line)]
    return {"functions": [re.sub(r"/\S*/(brecq|torch)/", r"\1/", line)[:150] for line in lines[:60]]}


def accuracy(bench: Bench, **changes: Any) -> Values:
    """Top-1 of a network that is trained here, quantized with `fast` at 3 bits a weight and 4 an activation."""
    model, (test, labels) = bench.trained, networks.gratings(400, seed=7)
    found = []
    for seed in range(1 if bench.tiny else 2):
        recipe = Recipe.preset("fast").replace(steps=bench.steps if bench.tiny else 60)
        changed = {"weights": 3, "activations": 4, "seed": seed, **changes}
        result, took = quantized(bench, model, networks.gratings(256, seed=3)[0], recipe, **changed)
        with torch.no_grad():
            found.append(100 * float((result.converted(test).argmax(1) == labels).double().mean()))
    with torch.no_grad():
        top1 = 100 * float((model(test).argmax(1) == labels).double().mean())
    return {"top1": found, "float top1": top1, "mean block error": took["mean block error"]}


@contextmanager
def tf32() -> Iterator[None]:
    environment.TF32 = True
    try:
        yield
    finally:
        environment.TF32 = False


@contextmanager
def caches_on_host() -> Iterator[None]:
    """Nothing is cached on the device."""
    made = ActivationCache.__init__

    def __init__(self: ActivationCache, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.limits["device"] = 0

    ActivationCache.__init__ = __init__  # type: ignore[method-assign]
    try:
        yield
    finally:
        ActivationCache.__init__ = made  # type: ignore[method-assign]


def within(context: Callable[[], Any], measure: Callable[..., Values], *args: Any, **kwargs: Any) -> Values:
    with context():
        return measure(*args, **kwargs)


def is_wanted(name: str, only: list[str] | None) -> bool:
    return not only or any(part in name for part in only)


def cells(bench: Bench, only: list[str] | None) -> dict[str, Callable[[], Values]]:
    """What to measure, the most important first."""
    tests = CudaTests(bench, is_wanted("cuda tests", only))
    found: dict[str, Callable[[], Values]] = {
        # no times, while the tests run
        "equality, instant": lambda: equality(bench, "instant"),
        "determinism, fast resnet18": lambda: determinism(bench, "resnet18", "fast"),
        "accuracy, float32": lambda: accuracy(bench),
        "accuracy, bf16": lambda: accuracy(bench, autocast="bf16"),
        "equality, fast": lambda: equality(bench, "fast"),
        "determinism, bf16 vit_b_16": lambda: determinism(bench, "vit_b_16", "fast", autocast="bf16"),
        "cuda tests": tests.result,
        "fast resnet18": lambda: speed(bench, "resnet18", "fast"),
        "instant resnet18": lambda: speed(bench, "resnet18", "instant"),
        "fast vit_b_16": lambda: speed(bench, "vit_b_16", "fast"),
        "profile resnet18": lambda: profile(bench, "resnet18", 2),
        "profile vit_b_16": lambda: profile(bench, "vit_b_16", 2),
        "hot spots, fast resnet18": lambda: hot_spots(bench, "resnet18", "fast"),
        "instant mobilenet_v2": lambda: speed(bench, "mobilenet_v2", "instant"),
        "fast mobilenet_v2": lambda: speed(bench, "mobilenet_v2", "fast"),
        "paper resnet18": lambda: speed(bench, "resnet18", "paper"),
        "bf16 vit_b_16": lambda: speed(bench, "vit_b_16", "fast", autocast="bf16"),
        "tf32 vit_b_16": lambda: within(tf32, speed, bench, "vit_b_16", "fast"),
        "bf16 resnet18": lambda: speed(bench, "resnet18", "fast", autocast="bf16"),
        "tf32 resnet18": lambda: within(tf32, speed, bench, "resnet18", "fast"),
        "caches on the host, fast resnet18": lambda: within(caches_on_host, speed, bench, "resnet18", "fast"),
        "instant vit_b_16": lambda: speed(bench, "vit_b_16", "instant"),
        "fast resnet50": lambda: speed(bench, "resnet50", "fast"),
        "fast efficientnet_lite0": lambda: speed(bench, "efficientnet_lite0", "fast"),
        "instant resnet50": lambda: speed(bench, "resnet50", "instant"),
        "instant efficientnet_lite0": lambda: speed(bench, "efficientnet_lite0", "instant"),
        "accuracy, tf32": lambda: within(tf32, accuracy, bench),
        "hot spots, instant mobilenet_v2": lambda: hot_spots(bench, "mobilenet_v2", "instant"),
        "profile mobilenet_v2": lambda: profile(bench, "mobilenet_v2", 2),
        "paper vit_b_16": lambda: speed(bench, "vit_b_16", "paper"),
        "paper mobilenet_v2": lambda: speed(bench, "mobilenet_v2", "paper"),
        "paper resnet50": lambda: speed(bench, "resnet50", "paper"),
        "paper efficientnet_lite0": lambda: speed(bench, "efficientnet_lite0", "paper"),
    }
    if bench.tiny:  # one of each kind
        kinds = ("determinism, fast resnet18", "cuda tests", "instant resnet18", "profile resnet18", "paper resnet18")
        found = {name: found[name] for name in kinds}
    return found


def run(bench: Bench, only: list[str] | None) -> None:
    for name, measure in cells(bench, only).items():
        if not is_wanted(name, only):
            continue
        if bench.left < 10:
            bench.results["left out"].append(name)
            continue
        began = time.perf_counter()
        try:
            found = measure()
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            found = {"error": f"{type(error).__name__}: {str(error)[:500]}", "traceback": text[-3000:]}
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        found["cell seconds"] = round(time.perf_counter() - began, 1)
        bench.results["cells"][name] = found
        bench.save()
        print(f"{bench.limit - bench.left:6.1f} s  {name}: {line(found)}", flush=True)
    bench.save()


def line(found: Values) -> str:
    """The numbers of a cell on one line."""
    if "error" in found:
        return found["error"]
    kept = {key: value for key, value in found.items() if isinstance(value, (bool, int, float, str)) or key == "top1"}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in kept.items()
    )


def table(results: Values) -> str:
    """The cells that are runs of a recipe, one a row."""
    known = results["machine"]
    columns = (
        "cell",
        "seconds",
        "per block and step, ms",
        "whole recipe, extrapolated, s",
        "peak memory, GB",
        "SQNR, dB",
    )
    title = f"{known.get('card', 'CPU')}, torch {known['torch']}, {results['samples']} calibration samples"
    rows = [title, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, cell in results["cells"].items():
        if "passes" not in cell:
            continue
        each = [1000 * one["per step"] / one["blocks"] for one in cell["passes"] if one["per step"]]
        steps = ", ".join(f"{value:.1f}" for value in each)
        peak = f"{cell['peak bytes'] / 1e9:.2f}" if "peak bytes" in cell else ""
        rows.append(f"| {name} | {cell['seconds']:.1f} | {steps} | {cell.get('extrapolated seconds', '')} | {peak} | "
                    f"{cell['sqnr']:.1f} |")  # fmt: skip
    rows += ["", *(f"{name}: {line(cell)}" for name, cell in results["cells"].items() if "passes" not in cell)]
    return "\n".join([*rows, *(f"left out for want of time: {name}" for name in results["left out"])])


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--seconds", type=float, default=440.0, help="begin no cell that may end later (default 440)")
    found.add_argument("--steps", type=int, default=40, help="learning steps a block that are measured (default 40)")
    found.add_argument("--samples", type=int, default=256, help="calibration samples (default 256)")
    found.add_argument("--only", nargs="+", metavar="TEXT", help="cells whose names hold one of these")
    found.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    found.add_argument("--tiny", action="store_true", help="small networks on the CPU: tries the script out")
    found.add_argument("--table", action="store_true", help="print the table of the file that is there")
    return found.parse_args(given)


def main(given: list[str] | None = None) -> Values:
    options = arguments(given)
    if options.table:
        results: Values = json.loads(options.results.read_text(encoding="utf-8"))
    else:
        bench = Bench(options)
        run(bench, options.only)
        results = bench.results
    print(table(results))
    return results


if __name__ == "__main__":
    main()
