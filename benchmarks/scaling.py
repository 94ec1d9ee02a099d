"""Processor time and peak memory of brecq against depth, width, calibration size and processes, with fitted exponents.

    python benchmarks/scaling.py                      # all series; writes results/scaling.json, draws docs/images
    python benchmarks/scaling.py --series ranks       # two processes against one: run it on an idle machine
    python benchmarks/scaling.py --series vit --budget 3GB

Every measurement is a process of its own (`fast` with few steps, random weights and inputs, one thread, kernels not
compiled): processor seconds of capturing with partitioning and checks, of learning, of converting; peak resident
memory less that of the imported libraries. `graphs` does the same for networks with many nodes. An exponent is the
slope of the line through the logarithms of the two largest halves of a series: 1 is linear. `wide`: linear layers with
thousands of inputs, those behind the convolutions of AlexNet and VGG-16.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, environment
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, Recipe, ranks
from brecq.progress import Progress
from brecq.text import parse_bytes

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SERIES: dict[str, list[dict[str, Any]]] = {
    "depth": [{"depth": n} for n in (10, 25, 50, 100, 200)],
    "width": [{"width": n} for n in (8, 16, 32, 64, 128)],
    "samples": [{"samples": n} for n in (64, 128, 256, 512, 1024)],
    "graphs": [{"network": f"timm:{n}", "samples": 2, "recipe": "rtn"} for n in ("densenet121", "densenet169",
               "densenet201", "inception_v3", "inception_v4")]
    + [{"network": f"transformer:{n}", "samples": 2, "recipe": "rtn"} for n in (6, 12, 24, 48)],
    "wide": [{"network": f"wide:{n}", "samples": 64, "recipe": r} for n, r in (("alexnet", "instant"),
             ("alexnet", "fast"), ("vgg16", "instant"))],
    "ranks": [{"processes": n, "depth": 3, "width": 64, "size": 32, "samples": 256, "steps": 60} for n in (1, 2)],
}  # fmt: skip
NETWORKS = ("graphs", "wide")
"""Series of networks that have a name."""
DEFAULTS = {"depth": 4, "width": 16, "samples": 64, "size": 8, "steps": 10, "recipe": "fast", "processes": 1}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + 0.3 * self.second(self.first(x).relu())).relu()


class Chain(nn.Module):
    """Residual blocks of one width."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


class Stages(Progress):
    """When the run turned from capturing to learning and from learning to converting, in processor seconds."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}

    def start(self, blocks: Any, steps: int, later: int = 0, loss: str = "soft") -> None:
        self.marks.setdefault("captured", time.process_time())

    def stage(self, text: str) -> None:
        if text == "converting":
            self.marks["learned"] = time.process_time()


def network(name: str | None, depth: int, width: int, size: int) -> tuple[nn.Module, tuple[int, ...]]:
    kind, _, which = (name or "").partition(":")
    torch.manual_seed(0)
    if kind == "timm":
        import timm

        model = timm.create_model(which, pretrained=False)
        return model, tuple(model.pretrained_cfg["input_size"])
    if kind == "wide":
        import torchvision

        size = {"alexnet": (256, 6, 6), "vgg16": (512, 7, 7)}[which]
        return nn.Sequential(nn.ReLU(), nn.Flatten(), *torchvision.models.get_model(which).classifier), size
    if kind == "transformer":
        from timm.models.vision_transformer import VisionTransformer

        return VisionTransformer(32, 8, embed_dim=64, depth=int(which), num_heads=4, num_classes=10), (3, 32, 32)
    return Chain(depth, width), (3, size, size)


def measure(job: dict[str, Any]) -> dict[str, Any] | None:
    """One run; what the first process found."""
    job = {**DEFAULTS, **job}
    ranks.join()
    model, shape = network(job.get("network"), job["depth"], job["width"], job["size"])
    x = torch.randn(job["samples"], *shape)
    recipe = Recipe.preset("instant" if job["recipe"] == "instant" else "fast")
    changes = {} if job["recipe"] == "instant" else {"steps": job["steps"], "range_candidates": 20}
    config = QuantConfig(
        recipe=recipe.replace(**changes), method="rtn" if job["recipe"] == "rtn" else "reconstruct",
        memory_budget=job.get("budget"),
    )  # fmt: skip
    quantize = brecq.quantize  # what it imports is not measured
    held, stages = _memory("VmRSS:"), Stages()
    wall, began = time.perf_counter(), time.process_time()
    result = quantize(model.eval(), x, config, progress=stages, device="cpu", run_dir=job.get("folder"))
    seconds, ended = time.perf_counter() - wall, time.process_time()
    found = {
        **job, "nodes": len(result.converted.graph.nodes), "parameters": sum(p.numel() for p in model.parameters()),
        "capture": stages.marks["captured"] - began, "learn": stages.marks["learned"] - stages.marks["captured"],
        "convert": ended - stages.marks["learned"], "processor": ended - began, "wall": seconds,
        "memory": _memory("VmHWM:") - held, "resident": _memory("VmHWM:"), "forwards": result.report.block_forwards,
    }  # fmt: skip
    return found if ranks.is_first() else None


def _memory(key: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(key)[1].split()[0])


def run(job: dict[str, Any]) -> dict[str, Any]:
    """`measure` in as many processes as the job says."""
    count = job.get("processes", 1)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
    command = [sys.executable, *launcher, str(Path(__file__).resolve()), "--one", json.dumps(job)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "BRECQ_KERNELS": job.get("kernels", "eager")}
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{job}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def exponent(xs: list[float], ys: list[float]) -> float:
    """Least squares in logarithms over the upper half of a series."""
    half = len(xs) // 2
    pairs = [(math.log(x), math.log(y)) for x, y in zip(xs[half:], ys[half:], strict=True)]
    mean_x, mean_y = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in pairs) / sum((x - mean_x) ** 2 for x, _ in pairs)


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, the exponents below them."""
    along = {"depth": "depth", "width": "width", "samples": "samples", "ranks": "processes"}.get(name, "nodes")
    columns = ("capture", "learn", "convert", "processor", "wall")
    lines = [f"| {'network' if name in NETWORKS else along} | nodes | " + " | ".join(f"{c}, s" for c in columns)
             + " | memory, MB | block forwards |", "|---|" + "---:|" * (len(columns) + 3)]  # fmt: skip
    for row in rows:
        seconds = " | ".join(f"{row[c]:.1f}" for c in columns)
        first = f"{row['network']}, {row['recipe']}" if name in NETWORKS else row[along]
        lines.append(f"| {first} | {row['nodes']} | {seconds} | {row['memory'] / 1e6:.0f} | {row['forwards']} |")
    families = [[r for r in rows if str(r.get("network")).startswith(p)] for p in ("timm:dense", "transformer")]
    for part in {"graphs": families, "wide": []}.get(name, [rows]):
        xs = [float(row[along]) for row in part]
        if len(part) > 2:
            slopes = ", ".join(f"{c} {exponent(xs, [r[c] for r in part]):.2f}" for c in (*columns[:4], "memory"))
            lines.append(f"\nExponents{' of ' + part[-1]['network'] if name == 'graphs' else ''}: {slopes}.")
    return "\n".join(lines)


def draw(found: dict[str, list[dict[str, Any]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    names = [name for name in ("depth", "width", "samples") if name in found]
    figure, axes = pyplot.subplots(2, len(names), figsize=(3.4 * len(names), 6), squeeze=False, sharey="row")
    for column, name in enumerate(names):
        xs = [row[name] for row in found[name]]
        above, below = axes[0][column], axes[1][column]
        for part in ("capture", "learn", "convert"):
            above.loglog(xs, [row[part] for row in found[name]], "o-", label=part)
        below.loglog(xs, [row["memory"] / 1e6 for row in found[name]], "o-", color="black")
        below.set_xlabel({"depth": "blocks", "width": "channels", "samples": "calibration samples"}[name])
        for axis in (above, below):
            axis.set_xticks(xs, [str(x) for x in xs])
            axis.set_xticks([], minor=True)
            axis.grid(alpha=0.3)
    for axis in (axes[0][0].yaxis, axes[1][0].yaxis):
        axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(ticker.NullFormatter())
    axes[1][0].set_ylim(30, 3000)
    axes[0][0].set_ylabel("processor seconds")
    axes[1][0].set_ylabel("peak memory, MB")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(IMAGES / "scaling.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", choices=[*SERIES, "vit"], default=list(SERIES))
    parser.add_argument("--network", default="timm:vit_large_patch16_224", help="of the series vit")
    parser.add_argument("--budget", default="3GB", help="of the series vit")
    parser.add_argument("--folder", default="vit-run", help="for the files of the series vit")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        torch.set_num_threads(1)
        found = measure(json.loads(options.one))
        if found is not None:
            print(json.dumps(found))
        return
    file = RESULTS / "scaling.json"
    print(f"{environment()}\n")
    for name in options.series:
        jobs = SERIES.get(name) or [
            {"network": options.network, "samples": 16, "recipe": "instant", "folder": options.folder,
             "budget": parse_bytes("--budget", options.budget)}
        ]  # fmt: skip
        rows = [run(job) for job in jobs]
        print(f"### {name}\n\n{table(name, rows)}\n", flush=True)
        if name == "ranks":
            one, two = rows
            print(f"Two processes: {one['wall'] / two['wall']:.2f} times as fast as one, by the wall clock.\n")
        if name == "vit":
            print(f"Peak resident memory of the whole process: {rows[0]['resident'] / 1e9:.2f} GB.\n")
        known = json.loads(file.read_text()) if file.exists() else {}  # others may measure other series meanwhile
        known[name] = rows
        file.write_text(json.dumps(known, indent=1) + "\n")
    draw(json.loads(file.read_text()))


if __name__ == "__main__":
    main()
