"""What one `brecq quantize` was asked to do, checked before any work."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brecq.cli import options as o
from brecq.cli.calibration import size_option
from brecq.cli.inputs import which_parts
from brecq.cli.parsing import require_data, require_path
from brecq.cli.tasks import Judged
from brecq.config import QuantConfig
from brecq.errors import ConfigError
from brecq.settings import DATA, setting
from brecq.synthesis.config import DistillConfig

if TYPE_CHECKING:
    from brecq.sources import Source

WITHOUT_DATA = "distilled"
"""What `--calib` says where there is no data, and the subfolder of the output for what is made instead."""

SAMPLES = 1024
"""Calibration samples by default."""


@dataclass(frozen=True, kw_only=True)
class Calibration(o.Checked):
    """What the network is calibrated on."""

    calib: Path = setting(
        help="calibration data: a folder of images, or .npz; distilled makes it from the model (without data)",
        metavar="PATH", panel=DATA,
    )  # fmt: skip
    calib_size: int | None = size_option(SAMPLES)
    max_skipped: float = o.max_skipped()


@dataclass(frozen=True, kw_only=True)
class Evaluated(o.Checked):
    """What the networks are compared on."""

    eval: Path | None = setting(None, "evaluation data, for the final table", metavar="PATH", panel=DATA)
    eval_labels: Path | None = setting(None, "labels of the evaluation images", metavar="CSV", panel=DATA)
    eval_size: int | None = o.samples(None, "evaluation samples. By default all")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that one `brecq quantize` was asked to do."""

    spec: str
    calibration: Calibration
    evaluation: Evaluated
    config: QuantConfig
    bits_from: Path | None
    changes: o.Changes
    checkpoint: o.Checkpoint
    submodules: tuple[str, ...]
    output: o.Output
    machine: o.Machine
    judged: Judged
    distillation: DistillConfig | None = None


def choose_distillation(calib: Path, config: DistillConfig | None, seed: int) -> DistillConfig | None:
    """How to distill where `--calib` is `distilled` and nothing of that name exists; otherwise `None`."""
    if str(calib) == WITHOUT_DATA and not os.path.exists(calib):
        return (config or DistillConfig.preset("fast")).replace(seed=seed)
    if config is not None:
        there = f"{str(calib)!r} is there and is read" if str(calib) == WITHOUT_DATA else f"--calib is {str(calib)!r}"
        raise ConfigError(f"--distill-preset and --distill-set belong to --calib distilled, but {there}; drop them")
    return None


def check_job(job: Job) -> None:
    """Raise for whatever can be known to be wrong before any work."""
    data = job.evaluation
    if data.eval is None and (job.judged.metric is not None or job.judged.decode is not None):
        raise ConfigError("--metric and --decode judge the networks on evaluation data; give --eval PATH too")
    if data.eval is None and (data.eval_labels is not None or data.eval_size is not None):
        raise ConfigError("--eval-labels and --eval-size belong to evaluation data; give --eval PATH too")
    require_path("--bits-from", job.bits_from)
    if job.distillation is None:
        require_data("--calib", job.calibration.calib)
    else:
        from brecq.reconstruct.fisher import check_labels

        check_labels(job.config, None, "distilled inputs have none")
    require_data("--eval", data.eval)
    require_path("--eval-labels", data.eval_labels, file=True)
    require_path("--weights", job.checkpoint.weights, file=True)


def settled(job: Job, source: Source) -> Job:
    """The job with what the source settles of it: the task, and what depends on that.

    Raises:
        ConfigError: bits that were searched, for a network that is quantized in parts.
    """
    if job.bits_from is not None and (parts := which_parts(job.submodules, source).get("submodules")):
        raise ConfigError(
            f"--bits-from is for networks that are quantized whole, and of this one {', '.join(parts)} are, each a "
            "program of its own; give bits with -w, -a and --set"
        )
    judged, config = job.judged.settled(job.config, source)
    return dataclasses.replace(job, judged=judged, config=config)
