"""`brecq distill`: calibration inputs from a model alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from brecq.cli import options as o
from brecq.cli.inputs import (
    check_output,
    example_shape,
    override_preprocessing,
    tell,
    tell_preprocessing,
    use_device,
)
from brecq.cli.parsing import parse_distillation, require_path
from brecq.cli.progress import make_progress
from brecq.cli.render import make_console, match_table
from brecq.synthesis.config import DistillConfig
from brecq.units import format_seconds

if TYPE_CHECKING:
    from torch import nn

    from brecq.data.preprocessing import Preprocessing
    from brecq.synthesis.distill import Distilled


def distill(
    spec: Annotated[
        str, typer.Argument(metavar="MODEL", help="timm:NAME, torchvision:NAME, hf:NAME_OR_PATH or file.py:callable.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where the inputs go.", rich_help_panel="The run")
    ],
    n: Annotated[int, typer.Option("--n", metavar="N", help="Inputs to make.", rich_help_panel="The data")] = 1024,
    preset: o.DistillPreset = None,
    settings: o.DistillSettings = None,
    mean: o.Mean = None,
    std: o.Std = None,
    size: o.Size = None,
    resize: o.Resize = None,
    interpolation: o.Interpolation = None,
    color: o.Color = None,
    weights: o.Weights = None,
    trust_pickle: o.TrustPickle = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the output folder.", rich_help_panel="The run")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the inputs in the output folder.", rich_help_panel="The run")
    ] = False,
    seed: o.Seed = o.DEFAULTS.seed,
    device: o.Device = "cpu",
    threads: o.Threads = None,
) -> None:
    """Make calibration inputs from MODEL alone, by matching the statistics that its batch norms remember.

    Where it has none, `--distill-preset leaves` draws pictures of random shapes.

    brecq distill timm:resnet18 --n 1024 -o distilled/
    """
    config = parse_distillation(preset, settings or (), seed)
    changes = o.preprocessing_changes(
        mean=mean, std=std, size=size, resize=resize, interpolation=interpolation, color=color
    )
    require_path("--weights", weights, file=True)
    check_output(output, resume=resume, force=force, finished=_is_finished(output), look="its contact_sheet.png")

    from brecq.sources import load_source

    console = make_console()
    use_device(device, threads)
    source = load_source(spec, weights, trust_pickle=trust_pickle)
    preprocessing = override_preprocessing(source.preprocessing, changes)
    tell(console, "model", source.name)
    tell_preprocessing(console, preprocessing)
    made = run(
        console,
        source.model,
        n,
        config,
        preprocessing,
        example_shape(source, preprocessing),
        output,
        resume=resume,
        device=device,
    )
    made.forget_batches()


def run(
    console: Console,
    model: nn.Module,
    n: int,
    config: DistillConfig,
    preprocessing: Preprocessing | None,
    shape: Sequence[int] | None,
    folder: Path,
    *,
    resume: bool,
    device: str,
) -> Distilled:
    """Distill into `folder`, telling what is done and how well the statistics are met; finished batches stay there."""
    from brecq.synthesis.distill import synthesize
    from brecq.synthesis.output import save

    tell(console, "distillation", f"{n} inputs, {config.describe()}")
    progress = make_progress(console)
    try:
        made = synthesize(
            model, n, config, preprocessing=preprocessing, shape=shape, run_dir=folder, resume=resume,
            progress=progress, device=device,
        )  # fmt: skip
    except KeyboardInterrupt:
        progress.close()
        console.print(f"interrupted; the same command with --resume continues in {folder}")
        raise
    finally:
        progress.close()
    save(folder, made, preprocessing)
    if made.layers:
        console.print(match_table(made.layers))
    sheet = "" if preprocessing is None else "; look at contact_sheet.png"
    tell(console, "distilled", f"{n} inputs in {format_seconds(made.seconds)}, saved in {folder}{sheet}")
    return made


def _is_finished(output: Path) -> bool:
    if not output.is_dir() or (output / "blocks").exists():
        return False
    from brecq.data.load import DISTILLED

    return (output / DISTILLED).exists()
