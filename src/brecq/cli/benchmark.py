"""`brecq benchmark`: size and speed of an exported file beside the float network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from brecq.cli.inputs import tell
from brecq.cli.parsing import require_path
from brecq.cli.render import describe_kernels, latency_table, make_console, megabytes


def benchmark(
    path: Annotated[Path, typer.Argument(metavar="RESULT", help="The folder that `brecq quantize` wrote.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file that `brecq export` wrote.")],
    format: Annotated[
        str | None, typer.Option("-f", "--format", metavar="NAME", help="The format, if FILE's name does not tell.")
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", metavar="N", help="A batch size; repeatable. Default: 1 and 16.")
    ] = None,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="Calls of each network and batch size.")] = 50,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads of the runtime.")] = 1,
    seconds: Annotated[float, typer.Option(metavar="S", min=0, help="At most about this long a batch size.")] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
    measured = brecq.benchmark(
        result, file, format=format, batches=batches or (1, 16), runs=runs, threads=threads, seconds=seconds
    )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(measured)))
        return
    over = 100 * (measured.size / measured.ideal - 1)
    tell(
        console, "size", f"{megabytes(measured.size)} MB, {over:.1f} % over the {megabytes(measured.ideal)} MB of its "
        f"weights, biases and scales; float {megabytes(measured.float_size)} MB",
    )  # fmt: skip
    if measured.kernels is not None:
        tell(console, "kernels", describe_kernels(measured.kernels))
    console.print(latency_table(measured))
