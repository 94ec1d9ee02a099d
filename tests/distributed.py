"""What the tests of several processes run, each process by itself: `python distributed.py FOLDER RANK SIZE JOB...`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from torch import Tensor

import brecq
import networks
from brecq import DistillConfig, QuantConfig, Recipe
from brecq.precision.measure import measure_sensitivity
from brecq.progress import Progress

SAMPLES = 56


def learned(result: brecq.QuantResult) -> dict[str, Tensor]:
    """The numbers of a quantized network, the errors of its blocks, and its ranges."""
    found = {f"state.{name}": value for name, value in result.converted.state_dict().items()}
    found["errors"] = torch.tensor([block.error_after for block in result.report.blocks])
    grids = [node.args[1] for node in result.converted.graph.nodes if "quantize_per_tensor" in str(node.target)]
    found["grids"] = torch.tensor([float(scale) for scale in grids])
    found["ranges"] = torch.tensor([range.scale for range in result.ranges or []])
    found["noise"] = torch.tensor([tensor.noise for tensor in result.report.tensors])
    return found


def quantized(recipe: str, network: str = "ResNet", samples: int = SAMPLES, **options: Any) -> dict[str, Tensor]:
    own = {name: options.pop(name) for name in list(options) if name in QuantConfig.__dataclass_fields__}
    passed = {name: options.pop(name) for name in ("run_dir", "resume", "progress") if name in options}
    settings = {"batch_size": 6, "range_candidates": 10, "range_samples": 24, **options}
    own = {"weights": 3, "activations": 4, **own}
    config = QuantConfig(recipe=Recipe.preset(recipe).replace(**settings), **own)
    model = networks.build(getattr(networks, network))
    return learned(brecq.quantize(model, networks.inputs(model, samples)[0], config, **passed))


def surveyed() -> dict[str, Tensor]:
    model = networks.build(networks.ResNet)
    config = QuantConfig(recipe=Recipe.preset("fast").replace(steps=2, range_candidates=10, loss="fisher"))
    table = measure_sensitivity(
        model, networks.inputs(model, SAMPLES)[0], config, bits=(2, 8), quality="reconstructed"
    )
    losses = [list(term.losses.values()) for term in table.terms]
    return {"losses": torch.tensor(losses), **table.codes}


def distilled(folder: Path) -> dict[str, Tensor]:
    model = networks.build(networks.ResNet)
    config = DistillConfig.preset("fast").replace(steps=3, batch_size=4)
    return {"inputs": brecq.distill(model, 12, config, shape=(3, 16, 16), run_dir=folder / "distilled")}


class Killed(Progress):
    """Ends process `rank` when it begins a block."""

    def __init__(self, rank: int, index: int) -> None:
        self.rank, self.index = rank, index

    def block(self, index: int, name: str) -> None:
        if index == self.index and dist.get_rank() == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(folder: Path) -> dict[str, Tensor]:
    return quantized("fast", steps=4, tuning=0, run_dir=folder / "run", progress=Killed(1, 2))


JOBS: dict[str, Any] = {
    "fast": lambda folder: quantized("fast", steps=6, tuning=0),
    "tuned": lambda folder: quantized("fast", steps=4, activations=32, first_last=None),
    # activations in float: one whose code is another by a rounding error moves the moments behind it by much more
    "instant": lambda folder: quantized("instant", activations=32),
    "wide": lambda folder: quantized("instant", "Wide", activations=32),  # patches are gathered, not summed
    "paper": lambda folder: quantized("paper", steps=4, activation_steps=4),
    # from rounding to nearest: of two steps that are nearly as good the closed form takes one by the last bits
    "shared": lambda folder: quantized("fast", "UNet", steps=3, batch_size=1, compensate=False),
    "survey": lambda folder: surveyed(),
    "distill": distilled,
    "killed": killed,
    "kept": lambda folder: quantized("fast", steps=4, tuning=0, run_dir=folder / "run", resume=True),
    "unlike": lambda folder: quantized("fast", steps=1, samples=SAMPLES - dist.get_rank()),
}


def main(folder: Path, rank: int, size: int, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    for job in jobs:
        try:
            found = JOBS[job](folder)
        except brecq.BrecqError as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        torch.save(found, folder / f"{job}.{rank}.pt")
    os._exit(0)  # without waiting for processes that are gone


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
