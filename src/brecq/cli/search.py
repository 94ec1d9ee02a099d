"""`brecq search`: sensitivities measured, bits per layer chosen within budgets."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from brecq.cli import options as o
from brecq.cli.bits import costs_table, draw_bits, tell_allocation
from brecq.cli.inputs import check_output, override_preprocessing, tell, tell_data, tell_preprocessing, use_device
from brecq.cli.parsing import given, parse_bit_list, require_data, require_path
from brecq.cli.progress import make_progress
from brecq.cli.render import make_console
from brecq.config import QuantConfig
from brecq.errors import ConfigError
from brecq.precision.budget import Budget, parse_budgets

if TYPE_CHECKING:
    from brecq.precision.hardware import HardwareModel
    from brecq.precision.table import SensitivityTable

FRONT = "front.json"
POINTS = "points"
FRONT_CHART = ("front.png", "front.svg")

_SEARCH = "The search"
_SENSITIVITY = "Sensitivities"

MEASURING = (
    "calib", "calib_size", "bits", "activation_choices", "quality", "cross", "draws", "activation_bits", "first_last",
    "rules", "placement", "weight_scheme", "activation_scheme", "recipe", "recipe_settings", "steps", "batch_size",
    "granularity", "blocks", "weights", "trust_pickle", "mean", "std", "size", "resize", "interpolation", "color",
    "resume", "memory_budget", "device",
)  # fmt: skip
"""Options that say how sensitivities are measured: they say nothing where an earlier search's are taken."""


@dataclass(frozen=True)
class Measurement:
    """How to measure the sensitivities of a model."""

    spec: str
    weights: Path | None
    trust_pickle: bool
    calib: Path
    calib_size: int
    preprocessing: dict[str, Any]
    config: QuantConfig
    bits: tuple[int, ...]
    activation_choices: tuple[int, ...] | None
    quality: Literal["fast", "reconstructed"]
    cross: Literal["none", "lowest", "all"]
    draws: int
    resume: bool
    device: str


def search(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|SEARCH", help="A model, or the folder of an earlier search to take over."),
    ],
    budgets: Annotated[
        list[str],
        typer.Option(
            "--budget",
            metavar="COST=LIMIT",
            help="size=2.0MB (decimal; or MiB), bops=10G, latency=3.5ms; repeatable, all are kept.",
            rich_help_panel=_SEARCH,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where the result goes.", rich_help_panel="The run")
    ],
    calib: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Calibration data: a folder of images, or .npz.", rich_help_panel="The data"
        ),
    ] = None,
    bits: Annotated[
        str, typer.Option(metavar="N,N,…", help="Bits that weights choose from.", rich_help_panel=_SEARCH)
    ] = "2,3,4,8",
    activation_choices: Annotated[
        str | None,
        typer.Option(
            "--search-activations",
            metavar="N,N,…",
            help="Bits that activations choose from. Default: -a for all.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    algorithm: Annotated[
        Literal["exact", "genetic", "random"],
        typer.Option(help="Integer program, the paper's genetic search, or a baseline.", rich_help_panel=_SEARCH),
    ] = "exact",
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="For latency: bitfusion, edge-fpga, mobile-npu, an accelerator's .toml, or a latency table (.json, "
            ".csv; brecq profile measures one).",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(
            "--pareto", metavar="N", min=2, help="Also the front of the first budget's cost.", rich_help_panel=_SEARCH
        ),
    ] = None,
    metric: Annotated[
        Literal["fisher", "fisher_diagonal", "relative"],
        typer.Option(help="The predicted loss.", rich_help_panel=_SEARCH),
    ] = "fisher",
    quality: Annotated[
        Literal["fast", "reconstructed"],
        typer.Option(
            help="Round weights to nearest, or learn each block at each bit-width.", rich_help_panel=_SENSITIVITY
        ),
    ] = "fast",
    cross: Annotated[
        Literal["none", "lowest", "all"],
        typer.Option(
            help="Pairs of a block's layers to measure: none, both at the lowest bits, all.",
            rich_help_panel=_SENSITIVITY,
        ),
    ] = "lowest",
    draws: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Random vectors a sample for the Fisher information.",
            rich_help_panel=_SENSITIVITY,
        ),
    ] = 1,
    activation_bits: o.ActivationBits = o.DEFAULTS.activations,
    first_last: o.FirstLast = str(o.DEFAULTS.first_last),
    rules: o.Rules = None,
    placement: o.PlacementOption = o.DEFAULTS.placement,
    weight_scheme: o.WeightScheme = o.DEFAULTS.weight_scheme,
    activation_scheme: o.ActivationScheme = o.DEFAULTS.activation_scheme,
    recipe: o.RecipeName = o.FAST,
    granularity: o.GranularityOption = o.DEFAULTS.granularity,
    blocks: o.Blocks = None,
    steps: o.Steps = None,
    batch_size: o.BatchSize = None,
    recipe_settings: o.RecipeSettings = None,
    weights: o.Weights = None,
    trust_pickle: o.TrustPickle = False,
    calib_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Calibration samples.", rich_help_panel="The data")
    ] = 512,
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
        bool, typer.Option("--force", help="Overwrite the search in the output folder.", rich_help_panel="The run")
    ] = False,
    seed: o.Seed = o.DEFAULTS.seed,
    memory_budget: o.MemoryBudget = None,
    device: o.Device = "cpu",
    threads: o.Threads = None,
) -> None:
    """Choose the bits of every layer of MODEL within budgets.

    brecq search timm:mobilenetv2_100 --calib DIR --budget size=2.0MB -o search/

    brecq search search/ --budget size=1.5MB -o smaller/     # the same sensitivities, another budget

    brecq quantize timm:mobilenetv2_100 --bits-from search/ --calib DIR -o out/
    """
    parsed = parse_budgets(budgets)
    earlier = Path(model) if (Path(model) / "sensitivity.json").is_file() else None
    if earlier is not None:
        if (option := given(ctx, MEASURING)) is not None:
            raise ConfigError(
                f"{model} is an earlier search, whose sensitivities are taken over: drop {option}, or name the model "
                "to measure anew"
            )
        if output.resolve() == earlier.resolve():
            raise ConfigError(f"the search in {model} would be overwritten by its own; name another folder with -o")
    elif Path(model).is_dir():
        raise ConfigError(
            f"{model} holds no finished search (no sensitivity.json); finish it with --resume, or name a model"
        )
    elif calib is None:
        raise ConfigError(f"{model!r} needs calibration data to be measured on; give --calib DIR")
    choices = parse_bit_list("--bits", bits)
    measurement = None
    if calib is not None:
        config = o.config_from_options(
            weight_bits=max(choices), activation_bits=activation_bits, first_last=first_last, placement=placement,
            weight_scheme=weight_scheme, activation_scheme=activation_scheme, rules=rules, granularity=granularity,
            blocks=blocks, recipe=recipe, recipe_settings=recipe_settings, steps=steps, batch_size=batch_size,
            memory_budget=memory_budget, seed=seed,
        )  # fmt: skip
        measurement = Measurement(
            model, weights, trust_pickle, calib, calib_size,
            o.preprocessing_changes(
                mean=mean, std=std, size=size, resize=resize, interpolation=interpolation, color=color
            ),
            config, choices,
            None if activation_choices is None else parse_bit_list("--search-activations", activation_choices),
            quality, cross, draws, resume, device,
        )  # fmt: skip
        require_data("--calib", calib)
        require_path("--weights", weights, file=True)
    if resume and (output / "sensitivity.json").exists() and not (output / "blocks").exists():
        raise ConfigError(
            f"the search in {output} is finished; take its sensitivities over (brecq search {output} --budget … -o "
            "OTHER), or start anew with --force"
        )
    check_output(output, resume=resume, force=force)
    console = make_console()
    use_device(device, threads)
    machine = None if hardware is None else load_hardware(hardware)
    if measurement is not None:
        table = measure(measurement, parsed, machine, output, console)
    else:
        table = take_over(Path(model), parsed, machine, console)
    deliver(table, parsed, machine, algorithm, metric, seed, points, output, console)
    spec = model if measurement is not None else "MODEL"
    tell(console, "saved", f"{output}; deliver it: brecq quantize {spec} --bits-from {output} --calib DIR -o out/")


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
    output: Path,
    console: Console,
) -> SensitivityTable:
    """Measure the table; budgets out of reach are an error before that."""
    from brecq.data import load_data
    from brecq.precision.measure import measure_sensitivity
    from brecq.precision.search import check_budgets
    from brecq.sources import load_source

    source = load_source(job.spec, job.weights, trust_pickle=job.trust_pickle)
    preprocessing = override_preprocessing(source.preprocessing, job.preprocessing)
    tell(console, "model", source.name)
    tell_preprocessing(console, preprocessing)
    calibration = load_data(job.calib, preprocessing, job.calib_size, job.config.seed)
    tell_data(console, "calibration", job.calib, calibration)
    progress = make_progress(console)

    def check(table: SensitivityTable) -> None:
        check_budgets(table, budgets, hardware)

    try:
        table = measure_sensitivity(
            source.model, calibration, job.config, bits=job.bits, activation_bits=job.activation_choices,
            quality=job.quality, cross=job.cross, draws=job.draws, check=check, run_dir=output, resume=job.resume,
            progress=progress, device=job.device,
        )  # fmt: skip
    except KeyboardInterrupt:
        progress.close()
        console.print(f"interrupted; the same command with --resume continues in {output}")
        raise
    finally:
        progress.close()
    return table


def deliver(
    table: SensitivityTable,
    budgets: tuple[Budget, ...],
    hardware: HardwareModel | None,
    algorithm: Literal["exact", "genetic", "random"],
    metric: Literal["fisher", "fisher_diagonal", "relative"],
    seed: int,
    points: int | None,
    output: Path,
    console: Console,
) -> None:
    """Search, and write and show what came out."""
    from brecq.precision.charts import plot_front
    from brecq.precision.search import pareto, uniform
    from brecq.precision.search import search as find

    table.save(output)
    for name in (FRONT, *FRONT_CHART):  # with --force, of the search that was here
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / POINTS, ignore_errors=True)
    chosen = find(table, budgets, hardware=hardware, algorithm=algorithm, metric=metric, seed=seed)
    chosen.save(output / "allocation.json")
    tell_allocation(console, chosen)
    draw_bits(console, chosen, output)
    widths = sorted({bits for knob in table.knobs if knob.free and knob.kind == "weight" for bits in knob.bits})
    beside = {f"{bits} bits": uniform(table, bits, hardware=hardware, metric=metric) for bits in widths}
    if beside:
        console.print(costs_table("Uniform weights, for comparison", beside, budgets[0].cost))
    if points is not None:
        cost = budgets[0].cost
        front = pareto(
            table, cost, points, budgets=budgets, hardware=hardware, algorithm=algorithm, metric=metric, seed=seed
        )
        for number, point in enumerate(front, 1):
            point.save(output / POINTS / f"{number:02d}.json")
        (output / FRONT).write_text(
            json.dumps({"cost": cost, "points": [p.to_dict() for p in front]}, indent=1) + "\n", encoding="utf-8"
        )
        console.print(costs_table("Front", {f"point {n}": point for n, point in enumerate(front, 1)}, cost))
        plot_front(front, cost, chosen, [output / name for name in FRONT_CHART])
        tell(console, "points", f"{output / POINTS}/NN.json: brecq quantize … --bits-from takes any of them")
