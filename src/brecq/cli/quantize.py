"""`brecq quantize`: a model and calibration data in, a quantized model out."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from brecq.cli import options as o
from brecq.cli.bits import draw_bits, tell_allocation
from brecq.cli.distill import run as run_distillation
from brecq.cli.inputs import (
    EvaluationData,
    check_output,
    example_shape,
    override_preprocessing,
    tell,
    tell_data,
    tell_preprocessing,
    use_device,
)
from brecq.cli.parsing import given, parse_distillation, require_data, require_path
from brecq.cli.progress import make_progress
from brecq.cli.render import ResultRow, describe_evaluation, make_console, result_table, short_count
from brecq.cli.report import write_run_page
from brecq.config import QuantConfig
from brecq.errors import ConfigError
from brecq.synthesis.config import DistillConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from brecq.data import Dataset, Preprocessing
    from brecq.precision.allocation import BitAllocation
    from brecq.result import QuantResult
    from brecq.sources import Source

WITHOUT_DATA = "distilled"
"""What `--calib` says where there is no data, and the subfolder of the output for what is made instead."""


@dataclass(frozen=True)
class Job:
    """Everything that one `brecq quantize` was asked to do."""

    spec: str
    weights: Path | None
    trust_pickle: bool
    submodule: str | None
    config: QuantConfig
    bits_from: Path | None
    preprocessing: dict[str, Any]
    calib: Path
    calib_size: int
    eval: Path | None
    eval_labels: Path | None
    eval_size: int | None
    output: Path
    resume: bool
    force: bool
    device: str
    threads: int | None
    distillation: DistillConfig | None = None


DECIDED = ("weight_bits", "activation_bits", "first_last", "placement", "weight_scheme", "activation_scheme")
"""Options that a bit allocation decides."""


def quantize(
    ctx: typer.Context,
    spec: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="timm:NAME, torchvision:NAME, hf:NAME_OR_PATH, file.py:callable or program.pt2."
        ),
    ],
    calib: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Calibration data: a folder of images, or .npz; distilled makes it from the model (without data).",
            rich_help_panel="The data",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where the result goes.", rich_help_panel="The run")
    ],
    weight_bits: o.WeightBits = o.DEFAULTS.weights,
    activation_bits: o.ActivationBits = o.DEFAULTS.activations,
    bits_from: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Bits per layer: the folder that brecq search wrote, or a point of its front.",
            rich_help_panel="What is quantized",
        ),
    ] = None,
    first_last: o.FirstLast = str(o.DEFAULTS.first_last),
    rules: o.Rules = None,
    placement: o.PlacementOption = o.DEFAULTS.placement,
    weight_scheme: o.WeightScheme = o.DEFAULTS.weight_scheme,
    activation_scheme: o.ActivationScheme = o.DEFAULTS.activation_scheme,
    method: o.MethodOption = o.DEFAULTS.method,
    recipe: o.RecipeName = o.FAST,
    granularity: o.GranularityOption = o.DEFAULTS.granularity,
    blocks: o.Blocks = None,
    steps: o.Steps = None,
    batch_size: o.BatchSize = None,
    qdrop: o.QDrop = None,
    loss: o.LossOption = None,
    recipe_settings: o.RecipeSettings = None,
    autocast: o.AutocastOption = o.DEFAULTS.autocast,
    weights: o.Weights = None,
    trust_pickle: o.TrustPickle = False,
    submodule: o.Submodule = None,
    calib_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Calibration samples.", rich_help_panel="The data")
    ] = 1024,
    distill_preset: o.DistillPreset = None,
    distill_settings: o.DistillSettings = None,
    eval_path: Annotated[
        Path | None,
        typer.Option(
            "--eval", metavar="PATH", help="Evaluation data, for the final table.", rich_help_panel="The data"
        ),
    ] = None,
    eval_labels: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Labels of the evaluation images.", rich_help_panel="The data"),
    ] = None,
    eval_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Evaluation samples. Default: all.", rich_help_panel="The data"),
    ] = None,
    mean: o.Mean = None,
    std: o.Std = None,
    size: o.Size = None,
    resize: o.Resize = None,
    interpolation: o.Interpolation = None,
    color: o.Color = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the output folder.", rich_help_panel="The run")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the result in the output folder.", rich_help_panel="The run")
    ] = False,
    seed: o.Seed = o.DEFAULTS.seed,
    memory_budget: o.MemoryBudget = None,
    device: o.Device = "cpu",
    threads: o.Threads = None,
) -> None:
    """Quantize MODEL, calibrated on a folder of unlabeled images.

    brecq quantize timm:resnet18 --calib DIR --eval DIR -w 4 -a 4 -o out/
    """
    config = o.config_from_options(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        first_last=first_last,
        placement=placement,
        weight_scheme=weight_scheme,
        activation_scheme=activation_scheme,
        rules=rules,
        granularity=granularity,
        blocks=blocks,
        method=method,
        recipe=recipe,
        recipe_settings=recipe_settings,
        steps=steps,
        batch_size=batch_size,
        qdrop=qdrop,
        loss=loss,
        autocast=autocast,
        memory_budget=memory_budget,
        seed=seed,
    )
    if bits_from is not None and (option := given(ctx, DECIDED)) is not None:
        raise ConfigError(f"{option} is decided by --bits-from; drop it, or change single layers with --set")
    job = Job(
        spec=spec,
        weights=weights,
        trust_pickle=trust_pickle,
        submodule=submodule,
        config=config,
        bits_from=bits_from,
        preprocessing=o.preprocessing_changes(
            mean=mean, std=std, size=size, resize=resize, interpolation=interpolation, color=color
        ),
        calib=calib,
        calib_size=calib_size,
        eval=eval_path,
        eval_labels=eval_labels,
        eval_size=eval_size,
        output=output,
        resume=resume,
        force=force,
        device=device,
        threads=threads,
        distillation=choose_distillation(calib, distill_preset, distill_settings, seed),
    )
    run(job, make_console())


def choose_distillation(
    calib: Path, preset: str | None, settings: Sequence[str] | None, seed: int
) -> DistillConfig | None:
    """How to distill where `--calib` is `distilled` and nothing of that name exists; otherwise `None`."""
    if str(calib) == WITHOUT_DATA and not calib.exists():
        return parse_distillation(preset, settings or (), seed)
    if settings or preset is not None:
        there = f"{str(calib)!r} is there and is read" if str(calib) == WITHOUT_DATA else f"--calib is {str(calib)!r}"
        raise ConfigError(f"--distill-preset and --distill-set belong to --calib distilled, but {there}; drop them")
    return None


def check_job(job: Job) -> None:
    """Raise for whatever can be known to be wrong before any work; create the output folder."""
    if job.eval is None and (job.eval_labels is not None or job.eval_size is not None):
        raise ConfigError("--eval-labels and --eval-size belong to evaluation data; give --eval PATH too")
    require_path("--bits-from", job.bits_from)
    if job.distillation is None:
        require_data("--calib", job.calib)
    require_data("--eval", job.eval)
    require_path("--eval-labels", job.eval_labels, file=True)
    require_path("--weights", job.weights, file=True)
    finished = (job.output / "manifest.json").exists() and not (job.output / "blocks").exists()
    check_output(job.output, resume=job.resume, force=job.force, finished=finished, look="it with brecq evaluate")


def run(job: Job, console: Console) -> None:
    """Do the job, telling on `console` what is done and what came out."""
    check_job(job)

    import brecq
    from brecq.data import load_data
    from brecq.sources import load_source

    use_device(job.device, job.threads)
    allocation, learned = load_bits(job.bits_from)
    source = load_source(job.spec, job.weights, trust_pickle=job.trust_pickle)
    preprocessing = override_preprocessing(source.preprocessing, job.preprocessing)
    tell(console, "model", f"{source.name}, {short_count(count_parameters(source.model))} parameters")
    tell_preprocessing(console, preprocessing)

    if job.distillation is None:
        calibration = load_data(job.calib, preprocessing, job.calib_size, job.config.seed)
        tell_data(console, "calibration", job.calib, calibration)
    else:
        calibration = distilled_calibration(job, job.distillation, source, preprocessing, console)
    evaluation = None
    if job.eval is not None:
        evaluation = EvaluationData(job.eval, preprocessing, job.eval_size, job.config.seed, job.eval_labels)
        tell_data(console, "evaluation", job.eval, evaluation)

    rows = [ResultRow("float", None, None, None)]
    if evaluation is not None and evaluation.labelled:
        measured = brecq.evaluate(source.model, evaluation, device=job.device)
        rows[0] = dataclasses.replace(rows[0], evaluation=measured)
        tell(console, "float", describe_evaluation(measured))

    progress = make_progress(console)
    try:
        result = brecq.quantize(
            source.model,
            calibration,
            job.config,
            allocation=allocation,
            learned=learned,
            submodule=job.submodule,
            run_dir=job.output,
            resume=job.resume,
            progress=progress,
            device=job.device,
        )
    except KeyboardInterrupt:
        progress.close()
        console.print(f"interrupted; the same command with --resume continues in {job.output}")
        raise
    finally:
        progress.close()
    result.metadata.update(describe_source(job), preprocessing=preprocessing and preprocessing.to_dict())
    result.save(job.output)
    shutil.rmtree(job.output / WITHOUT_DATA / "blocks", ignore_errors=True)  # nothing is left to resume

    if allocation is not None:
        tell_allocation(console, allocation)
        draw_bits(console, allocation, job.output)

    rows[0] = dataclasses.replace(rows[0], size=result.float_bytes())
    rows += quantized_rows(job, source.model, calibration, evaluation, result)
    console.print(result_table(rows))
    last = rows[-1].evaluation
    if last is not None and (last.scored or last.outputs):  # not plain class scores
        tell(console, "measured", describe_evaluation(last))
    tell(console, "saved", str(job.output))
    write_run_page(console, result, job.output, rows, calibration, evaluation, source.model, preprocessing, job.device)


def distilled_calibration(
    job: Job, config: DistillConfig, source: Source, preprocessing: Preprocessing | None, console: Console
) -> Dataset:
    """Calibration inputs distilled from the model, kept in a subfolder of the output."""
    from brecq.data import Dataset

    shape = example_shape(source, preprocessing)
    made = run_distillation(
        console, source.model, job.calib_size, config, preprocessing, shape, job.output / WITHOUT_DATA,
        resume=job.resume, device=job.device,
    )  # fmt: skip
    return Dataset((made.inputs,))


def quantized_rows(
    job: Job, model: nn.Module, calibration: Dataset, evaluation: EvaluationData | None, result: QuantResult
) -> list[ResultRow]:
    """The rows of the final table below the float one; rounding to nearest only where it can be evaluated."""
    import brecq

    size = result.weight_bytes()
    learned = job.config.method != "rtn"
    name = "reconstructed" if learned else "rounding to nearest"
    if evaluation is None:
        return [ResultRow(name, None, size, result.report.seconds)]
    rows, axis = [], job.config.class_axis
    if learned:
        config = dataclasses.replace(result.config, method="rtn")  # an allocation's bits included
        nearest = brecq.quantize(model, calibration, config, submodule=job.submodule, device=job.device)
        measured = brecq.evaluate(nearest.model, evaluation, reference=model, device=job.device, class_axis=axis)
        rows.append(ResultRow("rounding to nearest", measured, size, nearest.report.seconds))
    measured = brecq.evaluate(result.model, evaluation, reference=model, device=job.device, class_axis=axis)
    rows.append(ResultRow(name, measured, size, result.report.seconds))
    return rows


def load_bits(path: Path | None) -> tuple[BitAllocation | None, dict[str, Tensor]]:
    """An allocation, and what its search learned; nothing without a path."""
    if path is None:
        return None, {}
    from brecq.precision.allocation import BitAllocation
    from brecq.precision.table import learned_codes

    # a point of the front is a file one folder below the search's
    folders = [path] if path.is_dir() else [path.parent, path.parent.parent]
    found = (codes for folder in folders if (codes := learned_codes(folder)))
    return BitAllocation.load(path), next(found, {})


def describe_source(job: Job) -> dict[str, Any]:
    """What `brecq evaluate` needs to find the float model again."""
    weights = None if job.weights is None else str(job.weights.resolve())
    return {"source": {"spec": job.spec, "weights": weights, "submodule": job.submodule}}


def count_parameters(model: nn.Module) -> int:
    """Numbers in the model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
