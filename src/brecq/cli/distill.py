"""`brecq distill`: calibration inputs from a model alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brecq.cli import options as o
from brecq.cli.command import command
from brecq.cli.events import log, logged
from brecq.cli.inputs import (
    example_shape,
    in_one_size,
    override_preprocessing,
    tell,
    tell_preprocessing,
    use_device,
)
from brecq.cli.output import output_folder
from brecq.cli.parsing import require_path, typed
from brecq.cli.processes import is_first
from brecq.cli.progress import make_progress
from brecq.cli.render import make_console, match_table
from brecq.synthesis.config import DistillConfig
from brecq.units import format_seconds

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from brecq.data.preprocessing import Preprocessing
    from brecq.synthesis.distill import Distilled


@dataclass(frozen=True, kw_only=True)
class Inputs(o.Checked):
    """What is made."""

    n: int = o.samples(1024, "inputs to make")


@command
def distill(
    spec: o.Spec,
    output: o.Output,
    inputs: Inputs,
    config: DistillConfig,
    changes: o.Changes,
    checkpoint: o.Checkpoint,
    seed: o.Seed,
    machine: o.Machine,
) -> None:
    """Make calibration inputs from MODEL alone, by matching the statistics that its batch norms remember.

    Where it has none, `--distill-preset leaves` draws pictures of random shapes.

    brecq distill timm:resnet18 --n 1024 -o distilled/
    """
    config = config.replace(seed=seed.seed)
    folder = output.output
    require_path("--weights", checkpoint.weights, file=True)
    console = make_console()
    look = "look at its contact_sheet.png"
    with output_folder(output, console, finished=lambda: _is_finished(folder), look=look), logged(output.log_json):
        from brecq.sources import load_source

        use_device(machine)
        source = load_source(spec, checkpoint.weights, trust_pickle=checkpoint.trust_pickle)
        preprocessing = override_preprocessing(source.preprocessing, changes.given(), source.example_inputs)
        preprocessing = in_one_size(preprocessing)
        tell(console, "model", source.name)
        tell_preprocessing(console, preprocessing)
        shape = example_shape(source, preprocessing)
        made = run(
            console, source.model, inputs.n, config, preprocessing, shape, folder,
            name=source.name, resume=output.resume, device=machine.device,
        )  # fmt: skip
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
    name: str,
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
    finally:
        progress.close()
    if not is_first():
        return made
    save(folder, made, preprocessing)
    page = write_page(folder, made, name)
    if made.layers:
        console.print(match_table(made.layers))
    tell(console, "distilled", f"{n} inputs in {format_seconds(made.seconds)}, saved in {folder}")
    tell(console, "report", str(page))
    log("saved", folder=str(folder))
    return made


def write_page(folder: Path, made: Distilled, name: str) -> Path:
    """The page of what was made from the network of that name, beside it."""
    from brecq.page.distilled import DISTILLED_PAGE, distilled_page
    from brecq.page.record import Origin
    from brecq.page.render import write_text
    from brecq.synthesis.output import SHEET

    sheet = folder / SHEET
    pictures = sheet.read_bytes() if sheet.is_file() else None
    text = distilled_page(
        len(made.inputs), made.seconds, made.config.describe(), made.layers, pictures, Origin(name, typed())
    )
    return write_text(folder / DISTILLED_PAGE, text)


def _is_finished(output: Path) -> bool:
    if not os.path.isdir(output) or os.path.exists(output / "blocks"):
        return False
    from brecq.data.load import DISTILLED

    return os.path.exists(output / DISTILLED)
