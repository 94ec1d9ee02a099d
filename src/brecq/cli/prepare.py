"""What `brecq quantize` reads before it works: data, preprocessing, bits that were searched."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brecq.cli.calibration import how_many, read_calibration
from brecq.cli.distill import run as run_distillation
from brecq.cli.inputs import (
    Draw,
    EvaluationData,
    example_shape,
    in_one_size,
    override_preprocessing,
    tell,
    tell_data,
    tell_preprocessing,
    which_parts,
)
from brecq.cli.job import SAMPLES, WITHOUT_DATA, Job
from brecq.cli.processes import is_first
from brecq.cli.render import short_count
from brecq.cli.tasks import check_answers, whole_pictures
from brecq.synthesis.config import DistillConfig

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from brecq.data import Dataset, Preprocessing
    from brecq.data.pictures import Pictures
    from brecq.metrics import Metric
    from brecq.precision.allocation import BitAllocation
    from brecq.sources import Source
    from brecq.synthesis.distill import Distilled


@dataclass(frozen=True)
class Prepared:
    """Everything of a job that is read before it: the float network, how inputs are prepared, and the data."""

    source: Source
    preprocessing: Preprocessing | None
    metric: Any
    evaluation: EvaluationData | None
    calibration: Dataset | Pictures
    made: Distilled | None


def prepare(job: Job, source: Source, console: Console) -> Prepared:
    """Read the data."""
    from brecq.data import Dataset

    data = job.calibration
    preprocessing = whole_pictures(source.preprocessing, job.judged.task or source.task)
    preprocessing = override_preprocessing(preprocessing, job.changes.given(), source.example_inputs)
    tell(console, "model", f"{source.name}, {short_count(count_parameters(source.model))} parameters")
    in_parts = "submodules" in which_parts(job.submodules, source)
    tell_preprocessing(console, preprocessing, source.task, in_parts=in_parts)
    metric = job.judged.made()
    evaluation = evaluation_data(job, source.model, preprocessing, metric, console) if is_first() else None
    made: Distilled | None = None
    if job.distillation is None:
        calibration = read_calibration(
            data.calib, data.calib_size, SAMPLES, data.max_skipped, job.judged, source, preprocessing, job.config.seed,
            console,
        )  # fmt: skip
    else:
        count = how_many(data.calib_size, SAMPLES, job.judged, source)
        made = distilled_calibration(job, job.distillation, source, in_one_size(preprocessing), count, console)
        calibration = Dataset((made.inputs,))
    return Prepared(source, preprocessing, metric, evaluation, calibration, made)


def evaluation_data(
    job: Job, model: nn.Module, preprocessing: Preprocessing | None, metric: Metric | None, console: Console
) -> EvaluationData | None:
    """What the networks are compared on; data that the network does not take is refused before anything is learned."""
    from brecq.evaluation.run import try_out

    asked = job.evaluation
    if asked.eval is None:
        return None
    form = job.judged.form("val", model)
    found = EvaluationData(
        asked.eval, preprocessing, Draw(asked.eval_size, job.config.seed), asked.eval_labels, form,
        job.calibration.max_skipped,
    )  # fmt: skip
    tell_data(console, "evaluation", asked.eval, found)
    check_answers(asked.eval, found, metric)
    try_out(model, found.telling(), metric, model, job.machine.device, class_axis=job.config.class_axis)
    return found


def distilled_calibration(
    job: Job,
    config: DistillConfig,
    source: Source,
    preprocessing: Preprocessing | None,
    count: int,
    console: Console,
) -> Distilled:
    """Calibration inputs distilled from the model, kept in a subfolder of the output."""
    shape, folder = example_shape(source, preprocessing), job.output.output / WITHOUT_DATA
    return run_distillation(
        console, source.model, count, config, preprocessing, shape, folder, name=source.name,
        resume=job.output.resume and os.path.exists(folder / "blocks"), device=job.machine.device,
    )  # fmt: skip


def load_bits(path: Path | None) -> tuple[BitAllocation | None, dict[str, Tensor]]:
    """An allocation, and what its search learned; nothing without a path."""
    if path is None:
        return None, {}
    from brecq.precision.allocation import BitAllocation
    from brecq.precision.table import learned_codes

    # a point of the front is a file one folder below the search's
    folders = [path] if os.path.isdir(path) else [path.parent, path.parent.parent]
    found = (codes for folder in folders if (codes := learned_codes(folder)))
    return BitAllocation.load(path), next(found, {})


def count_parameters(model: nn.Module) -> int:
    """Numbers in the model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
