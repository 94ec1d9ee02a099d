"""`brecq profile`: a latency table of a model's layers, measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from brecq.cli import options as o
from brecq.cli.command import Without, command
from brecq.cli.inputs import require_whole, tell
from brecq.cli.inspect import choose_inputs
from brecq.cli.parsing import require_path
from brecq.cli.progress import make_progress
from brecq.cli.render import make_console, make_table
from brecq.config import FLOAT
from brecq.errors import ConfigError
from brecq.precision.options import ProfileConfig


@command
def profile(
    spec: o.Spec,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The table: .json or .csv.")],
    config: ProfileConfig,
    changes: Annotated[o.Changes, Without(o.PIXELS)],
    checkpoint: o.Checkpoint,
    hardware: Annotated[Literal["onnxruntime"], typer.Option(help="The runtime to measure.")] = "onnxruntime",
) -> None:
    """Measure how long each layer of MODEL takes in ONNX Runtime, as a table for `brecq search --hardware`.

    brecq profile timm:mobilenetv2_100 --hardware onnxruntime -o latency.json
    """
    if output.suffix not in (".json", ".csv"):
        raise ConfigError(f"the table is {str(output)!r}; name a .json or .csv file")
    require_path("--weights", checkpoint.weights, file=True)

    from brecq.precision.hardware.profile import measure_latency
    from brecq.sources import load_source

    source = load_source(spec, checkpoint.weights, trust_pickle=checkpoint.trust_pickle, pretrained=False)
    require_whole(source, "are profiled: measure a result with brecq benchmark")
    console = make_console()
    tell(console, "model", source.name)
    progress = make_progress(console)
    table = measure_latency(
        source.model,
        choose_inputs(source, changes, None),
        repeats=config.repeats,
        warmup=config.warmup,
        threads=config.threads,
        progress=progress,
    )
    table.save(output)
    shown = make_table("Milliseconds a sample", ["layer shape", "8 bit", "float"], numeric=("8 bit", "float"))
    times: dict[object, dict[int, float]] = {}
    for entry in table.entries:
        times.setdefault(entry.signature, {})[entry.w_bits] = entry.milliseconds
    for known, by_bits in times.items():
        shown.add_row(str(known), f"{by_bits[8]:.3f}", f"{by_bits[FLOAT]:.3f}")
    console.print(shown)
    tell(console, hardware, ", ".join(f"{name} {value}" for name, value in table.metadata.items()))
    tell(console, "saved", str(output))
