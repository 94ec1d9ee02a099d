"""`brecq verify`: does an exported file compute what was measured?"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brecq.cli import options as o
from brecq.cli.command import Without, command
from brecq.cli.inputs import EvaluationData, stored_preprocessing, tell, tell_data, tell_preprocessing, use_device
from brecq.cli.parsing import require_data, require_path
from brecq.cli.render import codes_table, comparison_table, describe_kernels, distances_table, make_console
from brecq.deploy.options import Tolerance
from brecq.errors import ConfigError
from brecq.settings import DATA, MODEL, setting

if TYPE_CHECKING:
    from rich.console import Console

    from brecq.deploy.against import Distance
    from brecq.deploy.verify import Verification
    from brecq.result import QuantResult

DIFFERS_STATUS = 1
SHOWN = 20
"""Tensors in the table of distances from the float network."""


@dataclass(frozen=True, kw_only=True)
class Data(o.Checked):
    """What is compared on."""

    data: Path = setting(help="a folder of images, or .npz", metavar="PATH", panel=DATA)
    samples: int = o.samples(100, "samples, chosen by --seed")
    batch_size: int = o.batch_size(16)


@command
def verify(
    path: o.Result,
    file: o.Exported,
    data: Data,
    changes: o.Changes,
    seed: o.Seed,
    machine: Annotated[o.Machine, Without(("device",))],
    tolerance: Tolerance,
    checkpoint: o.Checkpoint,
    format: o.FormatOfFile = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=MODEL,
            help="The float model: also say how far every tensor of FILE is from its, the worst first.",
        ),
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Compare every quantized tensor; name the first that differs.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Run an exported FILE in its runtime beside the integer simulator and the quantized network.

    Exits with status 1 if FILE is another result's, or differs from the simulator by more than it may.

    brecq verify out/ model.onnx --data DIR --bisect

    brecq verify out/ model.onnx --data DIR --model timm:resnet18
    """
    require_path("RESULT", path)
    require_path("FILE", file)
    require_data("--data", data.data)
    if model is None and checkpoint.weights is not None:
        raise ConfigError("--weights belong to the float model; name it with --model")

    import brecq
    from brecq.data import check
    from brecq.data.signature import Signature
    from brecq.storage.sealed import finite

    console = make_console(quiet=as_json)
    use_device(machine)
    result = brecq.load(path)
    preprocessing = stored_preprocessing(result.metadata, changes.given())
    tell(console, "result", str(path))
    tell(console, "file", str(file))
    tell_preprocessing(console, preprocessing)
    dataset = EvaluationData(data.data, preprocessing, data.samples, seed.seed, None)
    tell_data(console, "data", data.data, dataset)
    check(Signature(result.converted).bind(dataset.parts[0]), like=result.example_inputs)
    found = brecq.verify(
        result, file, dataset, format=format, bisect=bisect, batch_size=data.batch_size, tolerance=tolerance
    )
    far = [] if model is None else against(result, file, model, checkpoint, dataset, format, data.batch_size)
    if as_json:
        tensors = {"against_float": [{"tensor": each.tensor, "sqnr": each.sqnr} for each in far]} if far else {}
        values = {**dataclasses.asdict(found), "as_expected": found.as_expected, **tensors}
        typer.echo(json.dumps(finite(values)))
    else:
        show(console, found)
        if far:
            console.print(distances_table(far, SHOWN))
    if not found.as_expected:
        raise typer.Exit(DIFFERS_STATUS)


def against(
    result: QuantResult,
    file: Path,
    model: str,
    checkpoint: o.Checkpoint,
    dataset: EvaluationData,
    format: str | None,
    batch_size: int,
) -> list[Distance]:
    """How far each tensor of the file is from the float model's."""
    from brecq.deploy.against import distances
    from brecq.sources import load_source

    floating = load_source(model, checkpoint.weights, trust_pickle=checkpoint.trust_pickle).model
    return distances(result, file, floating, dataset, format=format, batch_size=batch_size)


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
            tell(console, "codes", f"the first tensor that differs is {first.tensor}, from equal codes before it")
    for note in found.notes:
        tell(console, "note", note)
    if not found.exact:
        tell(console, "allowed", found.tolerance.describe())
    for failure in found.failures:
        tell(console, "failed", failure)
    if found.as_expected:
        tell(console, "verified", "the file is this result's and computes what the simulator computes")
