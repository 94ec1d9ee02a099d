"""`brecq quantize`: a model and calibration data in, a quantized model out."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brecq.cli import options as o
from brecq.cli.bits import draw_bits, tell_allocation
from brecq.cli.command import command
from brecq.cli.deliver import deliver
from brecq.cli.events import log, logged
from brecq.cli.inputs import tell, use_device, which_parts
from brecq.cli.job import WITHOUT_DATA, Calibration, Evaluated, Job, check_job, choose_distillation, settled
from brecq.cli.output import output_folder
from brecq.cli.parsing import given
from brecq.cli.prepare import load_bits, prepare
from brecq.cli.processes import is_first
from brecq.cli.progress import make_progress
from brecq.cli.render import ResultRow, describe_evaluation, make_console
from brecq.cli.tasks import Judged
from brecq.cli.vain import refuse_vain
from brecq.config import QuantConfig
from brecq.errors import ConfigError
from brecq.settings import WHAT
from brecq.synthesis.config import DistillConfig

if TYPE_CHECKING:
    from rich.console import Console


DECIDED = (
    "weight_bits", "activation_bits", "first_last", "first_last_outputs", "placement", "weight_scheme",
    "activation_scheme",
)  # fmt: skip
"""Options that a bit allocation decides."""


@command
def quantize(
    ctx: typer.Context,
    spec: o.Spec,
    calibration: Calibration,
    distillation: DistillConfig | None,
    evaluation: Evaluated,
    judged: Judged,
    changes: o.Changes,
    output: o.Output,
    config: QuantConfig,
    checkpoint: o.Checkpoint,
    machine: o.Machine,
    bits_from: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Bits per layer: the folder that brecq search wrote, or a point of its front.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    submodule: o.Submodules = None,
) -> None:
    """Quantize MODEL, calibrated on a folder of unlabeled images.

    brecq quantize timm:resnet18 --calib DIR --eval DIR -w 4 -a 4 -o out/

    brecq quantize yolo.py:build --calib DIR --task detection --decode yolo.py:decode --eval coco.yaml -o out/
    """
    if bits_from is not None and (option := given(ctx, DECIDED)) is not None:
        raise ConfigError(f"{option} is decided by --bits-from; drop it, or change single layers with --set")
    if bits_from is None:
        refuse_vain(ctx, config)
    job = Job(
        spec=spec, calibration=calibration, evaluation=evaluation, config=config, bits_from=bits_from,
        changes=changes, checkpoint=checkpoint, submodules=tuple(submodule or ()), output=output, machine=machine,
        judged=judged, distillation=choose_distillation(calibration.calib, distillation, config.seed),
    )  # fmt: skip
    run(job, make_console())


def run(job: Job, console: Console) -> None:
    """Do the job, telling on `console` what is done and what came out."""
    check_job(job)
    folder = job.output.output
    with output_folder(
        job.output, console, look="look at it with brecq evaluate", states=("", WITHOUT_DATA),
        finished=lambda: os.path.exists(folder / "manifest.json") and not os.path.exists(folder / "blocks"),
    ), logged(job.output.log_json):  # fmt: skip
        work(job, console)


def work(job: Job, console: Console) -> None:
    """Do the job in its folder."""
    folder = job.output.output

    import brecq
    from brecq.sources import load_source

    use_device(job.machine)
    allocation, learned = load_bits(job.bits_from)
    source = load_source(job.spec, job.checkpoint.weights, trust_pickle=job.checkpoint.trust_pickle)
    job = settled(job, source)
    ready = prepare(job, source, console)
    floating = ResultRow("float", None, None, None)
    if ready.evaluation is not None and ready.evaluation.labelled:
        found = brecq.evaluate(source.model, ready.evaluation, metric=ready.metric, device=job.machine.device)
        floating = dataclasses.replace(floating, evaluation=found)
        tell(console, "float", describe_evaluation(found))
        log("float", samples=found.samples, metrics=found.shown())

    progress = make_progress(console)
    try:
        result = brecq.quantize(
            source.model, ready.calibration, job.config, allocation=allocation, learned=learned, run_dir=folder,
            resume=job.output.resume and os.path.exists(folder / "blocks"), progress=progress,
            device=job.machine.device, **which_parts(job.submodules, source),
        )  # fmt: skip
    finally:
        progress.close()
    if not is_first():
        return
    if allocation is not None:
        tell_allocation(console, allocation)
        draw_bits(console, allocation, folder)
    deliver(job, ready, result, floating, console)
