"""`brecq search`: sensitivities measured, bits per layer chosen within budgets."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brecq.cli import options as o
from brecq.cli.bits import costs_table, draw_bits, tell_allocation
from brecq.cli.calibration import read_calibration, size_option
from brecq.cli.command import Without, command
from brecq.cli.events import log, logged
from brecq.cli.inputs import override_preprocessing, require_whole, tell, tell_preprocessing, use_device
from brecq.cli.output import output_folder
from brecq.cli.parsing import given, require_data, require_path, typed
from brecq.cli.processes import is_first
from brecq.cli.progress import make_progress
from brecq.cli.render import make_console
from brecq.cli.tasks import Judged, whole_pictures
from brecq.cli.vain import refuse_vain
from brecq.config import QuantConfig
from brecq.errors import CheckpointError, ConfigError
from brecq.precision.budget import Budget, parse_budgets
from brecq.precision.options import FRONT_SIZE, SEARCH, SearchConfig, SurveyConfig
from brecq.settings import DATA, setting
from brecq.storage.files import is_ours, refuse_strangers
from brecq.storage.files import write as write_file

if TYPE_CHECKING:
    from rich.console import Console

    from brecq.precision.hardware import HardwareModel
    from brecq.precision.table import SensitivityTable

FRONT = "front.json"
POINTS = "points"
FRONT_CHART = ("front.png", "front.svg")

SAMPLES = 512
"""Calibration samples by default."""

CHOOSING = (
    "model", "budget", "output", "algorithm", "hardware", "pareto", "metric", "force", "seed", "threads",
)  # fmt: skip
"""Parameters that choose bits. All others say how sensitivities are measured: nothing where an earlier search's are
taken over."""


USED = frozenset({"outputs"})
"""Settings that a search reads whatever is learned: its Fisher information is of these outputs."""


@dataclass(frozen=True, kw_only=True)
class Request(o.Checked):
    """What is searched for."""

    # fmt: off
    budgets: tuple[Budget, ...] = setting(
        help="limits: size=2.0MB (decimal; or MiB), bops=10G, latency=3.5ms; repeatable, all are kept",
        flags=("--budget",), metavar="COST=LIMIT", panel=SEARCH, repeatable=True,
        parse=lambda _, texts: parse_budgets(texts),
    )
    hardware: str | None = setting(
        None,
        "for latency: bitfusion, edge-fpga, mobile-npu, an accelerator's .toml, or a latency table (.json, .csv; "
        "brecq profile measures one)",
        metavar="NAME|FILE", panel=SEARCH,
    )
    points: int | None = field(default=None, metadata={"setting": FRONT_SIZE})
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class Calibration(o.Checked):
    """What sensitivities are measured on."""

    calib: Path | None = setting(None, "calibration data: a folder of images, or .npz", metavar="PATH", panel=DATA)
    calib_size: int | None = size_option(SAMPLES)
    max_skipped: float = o.max_skipped()


@dataclass(frozen=True)
class Measurement:
    """How to measure the sensitivities of a model."""

    spec: str
    checkpoint: o.Checkpoint
    calibration: Calibration
    judged: Judged
    changes: o.Changes
    config: QuantConfig
    survey: SurveyConfig


@command
def search(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|SEARCH", help="A model, or the folder of an earlier search to take over."),
    ],
    request: Request,
    survey: SurveyConfig,
    choosing: Annotated[SearchConfig, Without(("seed",))],
    output: o.Output,
    calibration: Calibration,
    judged: Annotated[Judged, Without(("metric", "decode"))],
    changes: o.Changes,
    config: Annotated[QuantConfig, Without(("weights", "method", "autocast"))],
    checkpoint: o.Checkpoint,
    machine: o.Machine,
) -> None:
    """Choose the bits of every layer of MODEL within budgets.

    brecq search timm:mobilenetv2_100 --calib DIR --budget size=2.0MB -o search/

    brecq search search/ --budget size=1.5MB -o smaller/     # the same sensitivities, another budget

    brecq quantize timm:mobilenetv2_100 --bits-from search/ --calib DIR -o out/
    """
    folder, measuring = output.output, calibration.calib is not None
    check_source(ctx, model, folder, measuring)
    if measuring:
        learns = survey.quality == "reconstructed"  # blocks alone, without the tuning at the end
        method = config.replace(method="reconstruct" if learns else "rtn")
        refuse_vain(ctx, method.replace(recipe=config.recipe.replace(tuning=0.0)), kept=USED)
    require_data("--calib", calibration.calib)
    require_path("--weights", checkpoint.weights, file=True)
    console = make_console()
    with output_folder(
        output, console, look=f"take its sensitivities over (brecq search {folder} --budget … -o OTHER)",
        finished=lambda: os.path.exists(folder / "sensitivity.json") and not os.path.exists(folder / "blocks"),
    ), logged(output.log_json):  # fmt: skip
        from brecq.precision.allocation import ALLOCATION
        from brecq.precision.table import CODES, TABLE

        if is_first():
            refuse_strangers(folder, (TABLE, CODES, ALLOCATION, FRONT), ConfigError)
        use_device(machine)
        machine_model = None if request.hardware is None else load_hardware(request.hardware)
        if measuring:
            config = config.replace(weights=max(survey.bits))
            job = Measurement(model, checkpoint, calibration, judged, changes, config, survey)
            table, name = measure(job, request.budgets, machine_model, output, machine.device, console)
        else:
            table, name = take_over(Path(model), request.budgets, machine_model, console), ""
        choosing = dataclasses.replace(choosing, seed=config.seed)
        if not is_first():
            return
        deliver(table, request, machine_model, choosing, folder, console, name)
        log("saved", folder=str(folder))
    spec = model if measuring else "MODEL"
    tell(console, "saved", f"{folder}; deliver it: brecq quantize {spec} --bits-from {folder} --calib DIR -o out/")


def check_source(ctx: typer.Context, model: str, folder: Path, measuring: bool) -> None:
    """Raise `ConfigError` unless `model` is an earlier search to take over, or can be measured."""
    if os.path.isfile(Path(model) / "sensitivity.json"):
        if (option := given(ctx, CHOOSING, others=True)) is not None:
            raise ConfigError(
                f"{model} is an earlier search, whose sensitivities are taken over: drop {option}, or name the model "
                "to measure anew"
            )
        if folder.resolve() == Path(model).resolve():
            raise ConfigError(f"the search in {model} would be overwritten by its own; name another folder with -o")
    elif os.path.isdir(Path(model)):
        raise ConfigError(
            f"{model} holds no finished search (no sensitivity.json); finish it with --resume, or name a model"
        )
    elif not measuring:
        raise ConfigError(f"{model!r} needs calibration data to be measured on; give --calib DIR")


def load_hardware(source: str) -> HardwareModel:
    """An accelerator preset or TOML file, or a latency table."""
    from brecq.precision.hardware.accelerator import Accelerator
    from brecq.precision.hardware.table import LatencyTable

    if source.endswith((".json", ".csv")):
        return LatencyTable.load(source)
    return Accelerator.load(source)


def take_over(
    folder: Path, budgets: tuple[Budget, ...], hardware: HardwareModel | None, console: Console
) -> SensitivityTable:
    """The table of an earlier search."""
    from brecq.precision.search import check_budgets
    from brecq.precision.table import SensitivityTable

    table = SensitivityTable.load(folder)
    check_budgets(table, budgets, hardware)
    tell(console, "sensitivities", f"{len(table.terms)} of {folder}, {table.quality}, {table.samples} samples")
    return table


def measure(
    job: Measurement,
    budgets: tuple[Budget, ...],
    hardware: HardwareModel | None,
    output: o.Output,
    device: str,
    console: Console,
) -> tuple[SensitivityTable, str]:
    """Measure the table, also the network's name; budgets out of reach are an error before that."""
    from brecq.precision.measure import measure_sensitivity
    from brecq.precision.search import check_budgets
    from brecq.sources import load_source

    data = job.calibration
    source = load_source(job.spec, job.checkpoint.weights, trust_pickle=job.checkpoint.trust_pickle)
    require_whole(source, "bits are searched for: give bits to brecq quantize with -w, -a and --set")
    judged, config = job.judged.settled(job.config, source)
    judged.check_task()
    preprocessing = whole_pictures(source.preprocessing, judged.task)
    preprocessing = override_preprocessing(preprocessing, job.changes.given(), source.example_inputs)
    tell(console, "model", source.name)
    tell_preprocessing(console, preprocessing)
    assert data.calib is not None
    calibration = read_calibration(
        data.calib, data.calib_size, SAMPLES, data.max_skipped, judged, source, preprocessing, config.seed, console
    )
    progress = make_progress(console)

    def check(table: SensitivityTable) -> None:
        check_budgets(table, budgets, hardware)

    try:
        table = measure_sensitivity(
            source.model, calibration, config, **dataclasses.asdict(job.survey), check=check,
            run_dir=output.output, resume=output.resume, progress=progress, device=device,
        )  # fmt: skip
    finally:
        progress.close()
    return table, source.name


def deliver(
    table: SensitivityTable,
    request: Request,
    hardware: HardwareModel | None,
    config: SearchConfig,
    output: Path,
    console: Console,
    model: str,
) -> None:
    """Search, and write and show what came out; `model` is empty for the table of an earlier search."""
    from brecq.page.record import Origin
    from brecq.page.render import write_text
    from brecq.page.search import SEARCH_PAGE, search_page
    from brecq.precision.charts import plot_front
    from brecq.precision.search import pareto, uniform
    from brecq.precision.search import search as find

    how = dataclasses.asdict(config)
    cost = request.budgets[0].cost
    dataclasses.replace(table, run_state=None).save(output)  # the run is kept until all is written
    forget_front(output)
    chosen = find(table, request.budgets, hardware=hardware, **how)
    chosen.save(output / "allocation.json")
    tell_allocation(console, chosen)
    draw_bits(console, chosen, output)
    widths = sorted({bits for knob in table.knobs if knob.free and knob.kind == "weight" for bits in knob.bits})
    beside = {f"{bits} bits": uniform(table, bits, hardware=hardware, metric=config.metric) for bits in widths}
    if beside:
        console.print(costs_table("Uniform weights, for comparison", beside, cost))
    front = []
    if request.points is not None:
        front = pareto(table, cost, request.points, budgets=request.budgets, hardware=hardware, **how)
        for number, point in enumerate(front, 1):
            point.save(output / POINTS / f"{number:02d}.json")
        found = {"format": "brecq front", "cost": cost, "points": [p.to_dict() for p in front]}
        write_file(output / FRONT, (json.dumps(found, indent=1) + "\n").encode(), CheckpointError)
        console.print(costs_table("Front", {f"point {n}": point for n, point in enumerate(front, 1)}, cost))
        plot_front(front, cost, chosen, [output / name for name in FRONT_CHART])
        tell(console, "points", f"{output / POINTS}/NN.json: brecq quantize … --bits-from takes any of them")
    page = search_page(table, chosen, list(beside.items()), front, cost, config.metric, Origin(model, typed()))
    tell(console, "report", str(write_text(output / SEARCH_PAGE, page)))
    if table.run_state is not None:
        table.run_state.clear()


def forget_front(output: Path) -> None:
    """Delete the front of an earlier search in `output`, and nothing else."""
    if not is_ours(output / FRONT):
        return
    for file in (output / POINTS).glob("[0-9][0-9].json"):
        if is_ours(file):
            file.unlink()
    with suppress(OSError):  # not there, or with files of somebody else's
        (output / POINTS).rmdir()
    for name in (*FRONT_CHART, FRONT):
        (output / name).unlink(missing_ok=True)
