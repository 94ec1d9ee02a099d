"""`brecq quantize`: a model and calibration data in, a quantized model out."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brecq.cli import options as o
from brecq.cli.bits import draw_bits, tell_allocation
from brecq.cli.command import command
from brecq.cli.distill import run as run_distillation
from brecq.cli.inputs import (
    Draw,
    EvaluationData,
    example_shape,
    override_preprocessing,
    tell,
    tell_data,
    tell_preprocessing,
    use_device,
    which_parts,
)
from brecq.cli.output import output_folder
from brecq.cli.parsing import given, require_data, require_path
from brecq.cli.processes import is_first
from brecq.cli.progress import make_progress
from brecq.cli.render import ResultRow, describe_evaluation, make_console, result_table, short_count
from brecq.cli.report import collect_pictures, measured, write_run_page
from brecq.cli.tasks import VALUES, Judged, check_answers, whole_pictures
from brecq.cli.vain import refuse_vain
from brecq.config import QuantConfig
from brecq.errors import ConfigError
from brecq.settings import DATA, WHAT, setting
from brecq.synthesis.config import DistillConfig

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from brecq.data import Dataset, Preprocessing
    from brecq.metrics import Metric
    from brecq.precision.allocation import BitAllocation
    from brecq.result import QuantResult
    from brecq.sources import Source
    from brecq.synthesis.distill import Distilled

WITHOUT_DATA = "distilled"
"""What `--calib` says where there is no data, and the subfolder of the output for what is made instead."""


SAMPLES, OF_DETECTORS = 1024, 64
"""Calibration samples by default."""


@dataclass(frozen=True, kw_only=True)
class Calibration(o.Checked):
    """What the network is calibrated on."""

    calib: Path = setting(
        help="calibration data: a folder of images, or .npz; distilled makes it from the model (without data)",
        metavar="PATH", panel=DATA,
    )  # fmt: skip
    calib_size: int | None = o.samples(
        None, f"calibration samples. By default {SAMPLES}, of detectors {OF_DETECTORS}: their pictures are large"
    )


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
    require_data("--eval", data.eval)
    require_path("--eval-labels", data.eval_labels, file=True)
    require_path("--weights", job.checkpoint.weights, file=True)


def run(job: Job, console: Console) -> None:
    """Do the job, telling on `console` what is done and what came out."""
    check_job(job)
    folder = job.output.output
    with output_folder(
        job.output, console, look="look at it with brecq evaluate", states=("", WITHOUT_DATA),
        finished=lambda: os.path.exists(folder / "manifest.json") and not os.path.exists(folder / "blocks"),
    ):  # fmt: skip
        work(job, console)


@dataclass(frozen=True)
class Prepared:
    """Everything of a job that is read before it: the float network, how inputs are prepared, and the data."""

    source: Source
    preprocessing: Preprocessing | None
    metric: Any
    evaluation: EvaluationData | None
    calibration: Dataset
    made: Distilled | None


def work(job: Job, console: Console) -> None:
    """Do the job in its folder."""
    folder = job.output.output

    import brecq
    from brecq.sources import load_source

    use_device(job.machine)
    allocation, learned = load_bits(job.bits_from)
    source = load_source(job.spec, job.checkpoint.weights, trust_pickle=job.checkpoint.trust_pickle)
    by_default = job.calibration.calib_size is None
    job = settled(job, source)
    ready = prepare(job, source, by_default, console)
    floating = ResultRow("float", None, None, None)
    if ready.evaluation is not None and ready.evaluation.labelled:
        found = brecq.evaluate(source.model, ready.evaluation, metric=ready.metric, device=job.machine.device)
        floating = dataclasses.replace(floating, evaluation=found)
        tell(console, "float", describe_evaluation(found))

    progress = make_progress(console, job.output.log_json)
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


def prepare(job: Job, source: Source, by_default: bool, console: Console) -> Prepared:
    """Read the data; `by_default`: nobody said how many samples to calibrate on."""
    from brecq.data import Dataset, load_data

    data = job.calibration
    assert data.calib_size is not None
    preprocessing = whole_pictures(source.preprocessing, job.judged.task or source.task)
    preprocessing = override_preprocessing(preprocessing, job.changes.given(), source.example_inputs)
    tell(console, "model", f"{source.name}, {short_count(count_parameters(source.model))} parameters")
    tell_preprocessing(console, preprocessing)
    metric = job.judged.made()
    evaluation = evaluation_data(job, source.model, preprocessing, metric, console) if is_first() else None
    made: Distilled | None = None
    if job.distillation is None:
        calibration = load_data(
            data.calib, preprocessing, data.calib_size, job.config.seed, form=job.judged.form("train"),
            at_most=by_default,
        )  # fmt: skip
        calibration = dataclasses.replace(calibration, targets=None, origin="")  # nothing is learned from them
        tell_data(console, "calibration", data.calib, calibration)
        if by_default and len(calibration) == data.calib_size == OF_DETECTORS:
            why = "by default, as a detector's pictures are large; --calib-size N takes more"
            tell(console, "", f"{OF_DETECTORS} {why}")
    else:
        made = distilled_calibration(job, job.distillation, source, preprocessing, data.calib_size, console)
        calibration = Dataset((made.inputs,))
    return Prepared(source, preprocessing, metric, evaluation, calibration, made)


def deliver(job: Job, ready: Prepared, result: QuantResult, floating: ResultRow, console: Console) -> None:
    """Save the result, measure it beside rounding to nearest, and write its page."""
    from brecq import ranks

    folder, source, preprocessing = job.output.output, ready.source, ready.preprocessing
    result.metadata.update(describe_source(job, source), preprocessing=preprocessing and preprocessing.to_dict())
    result.metadata.update(job.judged.remembered())
    result.save(folder)  # last: what is saved is finished
    if ready.made is not None:
        ready.made.forget_batches()

    rows = [dataclasses.replace(floating, size=result.float_bytes())]
    with ranks.alone():
        rows += quantized_rows(job, source, ready.calibration, ready.evaluation, ready.metric, result)
    console.print(result_table(rows))
    last = rows[-1].evaluation
    # of plain class scores the table says it all
    if last is not None and (last.scored or last.outputs or last.metrics or not last.shown()):
        tell(console, "measured", describe_evaluation(last))
    result.report.measured = {row.name: measured(row) for row in rows if row.evaluation is not None}
    if result.report.measured:
        result.save(folder)
    tell(console, "saved", str(folder))
    pictures = collect_pictures(
        (source.model, result.model), ready.calibration, ready.evaluation, preprocessing, job.machine.device,
        ready.metric, (job.calibration.calib, job.evaluation.eval),
    )  # fmt: skip
    write_run_page(console, result, folder, rows, pictures)


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
    judged, config, calibration = job.judged, job.config, job.calibration
    if judged.task is None and judged.metric is None:
        judged = dataclasses.replace(judged, task=source.task)
    if judged.task in VALUES and config.outputs == "auto":
        config = dataclasses.replace(config, outputs="values")
    if calibration.calib_size is None:
        detector = "detection" in (judged.task, source.task)
        calibration = dataclasses.replace(calibration, calib_size=OF_DETECTORS if detector else SAMPLES)
    return dataclasses.replace(job, judged=judged, config=config, calibration=calibration)


def evaluation_data(
    job: Job, model: nn.Module, preprocessing: Preprocessing | None, metric: Metric | None, console: Console
) -> EvaluationData | None:
    """What the networks are compared on; data that the network does not take is refused before anything is learned."""
    import brecq

    asked = job.evaluation
    if asked.eval is None:
        return None
    form = job.judged.form("val")
    found = EvaluationData(asked.eval, preprocessing, Draw(asked.eval_size, job.config.seed), asked.eval_labels, form)
    tell_data(console, "evaluation", asked.eval, found)
    check_answers(asked.eval, found.parts[0], metric)
    few = found.parts[0].subset(slice(0, 2))
    brecq.evaluate(
        model, few, metric=metric, reference=model, device=job.machine.device, class_axis=job.config.class_axis
    )
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
        log=job.output.log_json,
    )  # fmt: skip


def quantized_rows(
    job: Job,
    source: Source,
    calibration: Dataset,
    evaluation: EvaluationData | None,
    metric: Metric | None,
    result: QuantResult,
) -> list[ResultRow]:
    """The rows of the final table below the float one; rounding to nearest only where it can be evaluated."""
    import brecq

    size = result.weight_bytes()
    learned = job.config.method != "rtn"
    name = "reconstructed" if learned else "rounding to nearest"
    if evaluation is None:
        return [ResultRow(name, None, size, result.report.seconds)]
    rows: list[ResultRow] = []
    device, model = job.machine.device, source.model
    how: dict[str, Any] = {
        "metric": metric, "reference": model, "device": device,
        "class_axis": job.config.class_axis,
    }  # fmt: skip
    if learned:
        config = dataclasses.replace(
            result.config, method="rtn", auto_high_precision=False
        )  # an allocation's bits included
        nearest = brecq.quantize(model, calibration, config, device=device, **which_parts(job.submodules, source))
        found = brecq.evaluate(nearest.model, evaluation, **how)
        rows.append(ResultRow("rounding to nearest", found, size, nearest.report.seconds))
    found = brecq.evaluate(result.model, evaluation, **how)
    rows.append(ResultRow(name, found, size, result.report.seconds))
    return rows


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


def describe_source(job: Job, source: Source) -> dict[str, Any]:
    """What `brecq evaluate` needs to find the float model again."""
    weights = None if job.checkpoint.weights is None else str(job.checkpoint.weights.resolve())
    return {"source": {"spec": job.spec, "weights": weights, "submodule": None, **which_parts(job.submodules, source)}}


def count_parameters(model: nn.Module) -> int:
    """Numbers in the model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
