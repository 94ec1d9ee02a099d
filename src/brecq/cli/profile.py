"""`brecq profile`: a latency table of a model's layers, measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from brecq.cli import options as o
from brecq.cli.inputs import tell
from brecq.cli.inspect import choose_inputs
from brecq.cli.parsing import parse_size, require_path
from brecq.cli.progress import make_progress
from brecq.cli.render import make_console, make_table
from brecq.config import FLOAT
from brecq.errors import ConfigError


def profile(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="timm:NAME, torchvision:NAME, hf:NAME_OR_PATH, file.py:callable or program.pt2."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The table: .json or .csv.")],
    hardware: Annotated[Literal["onnxruntime"], typer.Option(help="The runtime to measure.")] = "onnxruntime",
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Timed runs; the median counts.")] = 50,
    warmup: Annotated[int, typer.Option(metavar="N", min=0, help="Runs before them.")] = 10,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads of the runtime.")] = 1,
    size: o.Size = None,
    weights: o.Weights = None,
    trust_pickle: o.TrustPickle = False,
) -> None:
    """Measure how long each layer of MODEL takes in ONNX Runtime, as a table for `brecq search --hardware`.

    brecq profile timm:mobilenetv2_100 --hardware onnxruntime -o latency.json
    """
    if output.suffix not in (".json", ".csv"):
        raise ConfigError(f"the table is {str(output)!r}; name a .json or .csv file")
    require_path("--weights", weights, file=True)
    side = None if size is None else parse_size(size)

    from brecq.precision.hardware.profile import measure_latency
    from brecq.sources import load_source

    source = load_source(spec, weights, trust_pickle=trust_pickle, pretrained=False)
    console = make_console()
    tell(console, "model", source.name)
    progress = make_progress(console)
    table = measure_latency(
        source.model,
        choose_inputs(source.example_inputs, side),
        repeats=repeats,
        warmup=warmup,
        threads=threads,
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
