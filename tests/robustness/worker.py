"""Runs of a small network in processes of their own, forked from one that has imported everything and is warm: they
can be killed.

Reads requests as JSON lines {"task": …, "folder": …, "limit": bytes of a file or null, "signal": number or null,
"after": seconds, "until": pattern or null, "nth": number}; answers each with the exit status. The signal comes after
that time, or when the nth file that the pattern matches has got its name, whatever the speed of the machine. A refusal
is written to <folder>.error, and the status is 2; what a command prints is in <folder>.out.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

import brecq
from brecq import pipeline
from brecq.checkpoint.resume import has_run
from brecq.cli import app
from brecq.cli.output import Terminated, ending_like_interrupted
from brecq.errors import BrecqError
from brecq.synthesis.config import DistillConfig
from brecq.synthesis.distill import synthesize
from brecq.synthesis.output import save

SHAPE = (3, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 5))
    with torch.no_grad():
        model(torch.randn(64, *SHAPE))  # statistics
    return model.eval()


def inputs() -> torch.Tensor:
    return torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1))


def config(**changes: object) -> brecq.QuantConfig:
    recipe = brecq.Recipe.preset("fast").replace(steps=60, batch_size=8, range_candidates=10, tuning=0.2)
    return brecq.QuantConfig(weights=3, activations=4, recipe=recipe, granularity="layer", **changes)


def quantize(folder: Path, **changes: object) -> None:
    if (folder / "manifest.json").exists() and not has_run(folder):
        return
    resume = has_run(folder)
    brecq.quantize(network(), inputs(), config(**changes), run_dir=folder, resume=resume).save(folder)


def quantize_on_disk(folder: Path) -> None:
    """Activations wait in files."""
    pipeline.left_for_caches = lambda *_: 0
    quantize(folder)


class Regions(nn.Module):
    """A head that gets rows which the body chooses, other ones with every change of it, like a detector's."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.body(x).relu().flatten(2).transpose(1, 2)
        best = rows.sum(2).topk(3, dim=1).indices
        return self.head(torch.cat([mine[chosen] for mine, chosen in zip(rows, best, strict=True)]))


def quantize_parts(folder: Path) -> None:
    """Two submodules in one run."""
    if (folder / "manifest.json").exists() and not has_run(folder):
        return
    torch.manual_seed(0)
    model, names, resume = Regions().eval(), ["body", "head"], has_run(folder)
    brecq.quantize(model, inputs(), config(), submodules=names, run_dir=folder, resume=resume).save(folder)


def search(folder: Path) -> None:
    if (folder / "sensitivity.json").exists() and not has_run(folder):
        return
    resume = has_run(folder)
    table = brecq.measure_sensitivity(network(), inputs(), config(), bits=(2, 4), run_dir=folder, resume=resume)
    table.save(folder)


def distill(folder: Path) -> None:
    if (folder / "distilled.npz").exists() and not has_run(folder):
        return
    settings = DistillConfig.preset("fast").replace(steps=30, batch_size=4, coarse=0)
    made = synthesize(network(), 12, settings, shape=SHAPE, run_dir=folder, resume=has_run(folder))
    save(folder, made, None)
    made.forget_batches()


def export(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    result = brecq.quantize(network(), inputs(), config(method="rtn"))
    brecq.export(result, folder / "model.onnx", "onnx")
    brecq.export(result, folder / "model.pt2", "pt2")


def command(folder: Path, *more: str) -> int:
    """`brecq quantize`, with an evaluation and a page, on a clock that stands still: its files hold no times."""
    if (folder / "manifest.json").exists() and not has_run(folder):
        return 0
    data = folder.with_name("data.npz")
    if not data.exists():
        x = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(1)).numpy()
        np.savez(data, x=x, y=np.arange(40) % 5)
    resume = ["--resume"] if has_run(folder) else []
    words = [
        "quantize", f"{__file__}:network", "--calib", data, "--calib-size", 16, "--eval", data, "-o", folder, "-a", 4,
        *more, *resume,
    ]  # fmt: skip
    texts = [str(word) for word in words]
    with folder.with_suffix(".out").open("w") as out, redirect_stdout(out), redirect_stderr(out):
        # the page names the command, and the folder that it was typed for
        typed = mock.patch("brecq.cli.report.typed", return_value="brecq quantize")
        with mock.patch("time.perf_counter", return_value=0.0), typed:
            return int(app(texts, standalone_mode=False) or 0)


def command_learned(folder: Path) -> int:
    return command(folder, "-w", "3", "--steps", "20", "--batch-size", "8")


def command_nearest(folder: Path) -> int:
    return command(folder, "-w", "3", "--method", "rtn")


TASKS = {
    task.__name__: task
    for task in (
        quantize, quantize_on_disk, quantize_parts, search, distill, export, command_learned, command_nearest,
    )
}  # fmt: skip


def kill_at(pattern: str, nth: int, number: int) -> None:
    """Send this process a signal as soon as the nth file that matches has got its name."""
    rename, seen = os.replace, 0

    def replace(source: str, target: str) -> None:
        nonlocal seen
        rename(source, target)
        seen += Path(target).match(pattern)
        if seen == nth and Path(target).match(pattern):
            os.kill(os.getpid(), number)

    os.replace = replace  # type: ignore[assignment]


def run(request: dict[str, object]) -> int:
    folder, limit = Path(str(request["folder"])), request["limit"]
    torch.set_num_threads(1)
    if request["until"] is not None:
        kill_at(str(request["until"]), int(str(request["nth"])), int(str(request["signal"])))
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(str(limit)), int(str(limit))))
    try:
        with ending_like_interrupted():
            return TASKS[str(request["task"])](folder) or 0
    except BrecqError as error:
        folder.with_suffix(".error").write_text(str(error))
        return 2
    except KeyboardInterrupt as error:
        return 143 if isinstance(error, Terminated) else 130


def warm_up() -> None:
    """What a process does once, when it first captures and exports: runs begin behind it. No gradient is asked for:
    PyTorch refuses them in what is forked afterwards."""
    torch.set_num_threads(1)
    with mock.patch("brecq.capture.export.check_derivatives"), tempfile.TemporaryDirectory() as folder:
        export(Path(folder))


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    warm_up()
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            status = 1
            try:
                status = run(request)
            except KeyboardInterrupt:  # before the task began
                status = 130
            finally:
                os._exit(status)
        if request["signal"] is not None and request["until"] is None:
            deadline = time.monotonic() + request["after"]
            ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
            while time.monotonic() < deadline and os.waitid(os.P_PID, process, ended) is None:
                time.sleep(0.002)
            os.kill(process, request["signal"])  # its status is not taken yet: the number is still its own
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
