"""`brecq verify`: does an exported file compute what was measured?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from brecq.cli import options as o
from brecq.cli.inputs import EvaluationData, override_preprocessing, tell, tell_data, tell_preprocessing, use_device
from brecq.cli.parsing import require_data, require_path
from brecq.cli.render import codes_table, comparison_table, describe_kernels, make_console

if TYPE_CHECKING:
    from brecq.deploy.verify import Verification

DIFFERS_STATUS = 1


def verify(
    path: Annotated[Path, typer.Argument(metavar="RESULT", help="The folder that `brecq quantize` wrote.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file that `brecq export` wrote.")],
    data: Annotated[
        Path, typer.Option(metavar="PATH", help="A folder of images, or .npz.", rich_help_panel="The data")
    ],
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Samples, chosen by --seed.", rich_help_panel="The data")
    ] = 100,
    mean: o.Mean = None,
    std: o.Std = None,
    size: o.Size = None,
    resize: o.Resize = None,
    interpolation: o.Interpolation = None,
    color: o.Color = None,
    format: Annotated[
        str | None, typer.Option("-f", "--format", metavar="NAME", help="The format, if FILE's name does not tell.")
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Compare every quantized tensor; name the first that differs.")
    ] = False,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Samples at a time.")] = 16,
    seed: o.Seed = 0,
    threads: o.Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run an exported FILE in its runtime beside the integer simulator and the quantized network.

    Exits with status 1 if a file that has to equal the simulator does not.

    brecq verify out/ model.onnx --data DIR --bisect
    """
    changes = o.preprocessing_changes(
        mean=mean, std=std, size=size, resize=resize, interpolation=interpolation, color=color
    )
    require_path("RESULT", path)
    require_path("FILE", file)
    require_data("--data", data)

    import brecq
    from brecq.data import Preprocessing, check

    console = make_console(quiet=as_json)
    use_device("cpu", threads)
    result = brecq.load(path)
    stored = result.metadata.get("preprocessing")
    preprocessing = override_preprocessing(None if stored is None else Preprocessing.from_dict(stored), changes)
    tell(console, "result", str(path))
    tell(console, "file", str(file))
    tell_preprocessing(console, preprocessing)
    dataset = EvaluationData(data, preprocessing, samples, seed, None)
    tell_data(console, "data", data, dataset)
    check(dataset.parts[0], like=result.example_inputs)
    found = brecq.verify(result, file, dataset, format=format, bisect=bisect, batch_size=batch_size)
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(found), "as_expected": found.as_expected}))
    else:
        show(console, found)
    if not found.as_expected:
        raise typer.Exit(DIFFERS_STATUS)


def show(console: Console, found: Verification) -> None:
    """The comparison as tables and sentences."""
    if found.kernels is not None:
        tell(console, "kernels", describe_kernels(found.kernels))
    console.print(comparison_table(found))
    if found.tensors:
        count = sum(tensor.count for tensor in found.tensors)
        first = found.first_difference
        if first is None:
            tell(console, "codes", f"all {count} codes of {len(found.tensors)} quantized tensors are equal")
        else:
            console.print(codes_table([tensor for tensor in found.tensors if tensor.differing]))
            tell(console, "codes", f"the first tensor that differs is {first.tensor}")
    for note in found.notes:
        tell(console, "note", note)
    if not found.as_expected:
        tell(console, "result", "the file does not compute what the integer simulator computes")
