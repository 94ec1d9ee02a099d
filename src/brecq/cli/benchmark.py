"""`brecq benchmark`: size and speed of an exported file beside the float network."""

from __future__ import annotations

import dataclasses
import json

import typer

from brecq.cli import options as o
from brecq.cli.command import command
from brecq.cli.inputs import tell
from brecq.cli.parsing import require_path
from brecq.cli.render import describe_kernels, latency_table, make_console
from brecq.deploy.options import BenchmarkConfig
from brecq.units import format_bytes


@command
def benchmark(
    path: o.Result, file: o.Exported, config: BenchmarkConfig, format: o.FormatOfFile = None, as_json: o.Json = False
) -> None:
    """Measure an exported FILE: its size against the ideal, its latency against the float network's.

    Both networks run in the same runtime, call after call in turn.

    brecq benchmark out/ model.onnx
    """
    require_path("RESULT", path)
    require_path("FILE", file)

    import brecq

    console = make_console(quiet=as_json)
    result = brecq.load(path)
    measured = brecq.benchmark(result, file, format=format, **dataclasses.asdict(config))
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(measured)))
        return
    over = 100 * (measured.size / measured.ideal - 1)
    tell(
        console, "size", f"{format_bytes(measured.size)}, {over:.1f} % over the {format_bytes(measured.ideal)} of its "
        f"weights, biases and scales; float {format_bytes(measured.float_size)}",
    )  # fmt: skip
    if measured.kernels is not None:
        tell(console, "kernels", describe_kernels(measured.kernels))
    console.print(latency_table(measured))
    if slow := measured.slower():
        batches = ", ".join(map(str, slow))
        tell(console, "slower", f"than the float network at batch {batches}: the file saves memory, not time there")
