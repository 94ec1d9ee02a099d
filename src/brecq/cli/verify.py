"""`brecq verify`: does an exported file compute what was measured?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brecq.cli import options as o
from brecq.cli.command import Without, command
from brecq.cli.evaluate import choose_reference
from brecq.cli.inputs import (
    Draw,
    EvaluationData,
    stored_preprocessing,
    tell,
    tell_data,
    tell_preprocessing,
    use_device,
)
from brecq.cli.parsing import given, require_data, require_path
from brecq.cli.render import (
    codes_table,
    comparison_table,
    describe_differing,
    describe_kernels,
    distances_table,
    make_console,
)
from brecq.deploy.options import Tolerance
from brecq.errors import ConfigError
from brecq.settings import DATA, MODEL, setting

if TYPE_CHECKING:
    from rich.console import Console

    from brecq.deploy.against import Distance
    from brecq.deploy.verify import Verification
    from brecq.page.record import Exported
    from brecq.result import QuantResult

DIFFERS_STATUS = 1
SHOWN = 20
"""Tensors in the table of distances from the float network."""


@dataclass(frozen=True, kw_only=True)
class Data(o.Checked):
    """What is compared on."""

    data: Path = setting(help="a folder of images, or .npz", metavar="PATH", panel=DATA)
    samples: int = o.samples(100, "samples, chosen by --seed")
    max_skipped: float = o.max_skipped()
    batch_size: int = o.batch_size(16)


Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        rich_help_panel=MODEL,
        help="The float model: also say how far every tensor of FILE is from its, the worst first. Of a result in "
        "parts also the network around them.",
    ),
]
Report = Annotated[
    bool, typer.Option("--report", help="Draw these distances into RESULT's report.html too, layer by layer.")
]
Bisect = Annotated[bool, typer.Option("--bisect", help="Compare every quantized tensor; name the first that differs.")]


@command
def verify(
    ctx: typer.Context,
    path: o.Result,
    file: o.Exported,
    data: Data,
    changes: o.Changes,
    seed: o.Seed,
    machine: Annotated[o.Machine, Without(("device",))],
    tolerance: Tolerance,
    checkpoint: o.Checkpoint,
    format: o.FormatOfFile = None,
    model: Model = None,
    into_report: Report = False,
    bisect: Bisect = False,
    as_json: o.Json = False,
) -> None:
    """Run an exported FILE in its runtime beside the integer simulator and the quantized network.

    Exits with status 1 if FILE is another result's, or differs from the simulator by more than it may.

    brecq verify out/ model.onnx --data DIR --bisect

    brecq verify out/ model.onnx --data DIR --model timm:resnet18 --report

    brecq verify out/ files/ --data DIR --model torchvision:retinanet_resnet50_fpn
    """
    require_path("RESULT", path)
    require_path("FILE", file)
    require_data("--data", data.data)
    if model is None and checkpoint.weights is not None:
        raise ConfigError("--weights belong to the float model; name it with --model")
    if model is None and into_report:
        raise ConfigError("--report draws distances from the float model; name it with --model")

    import brecq
    from brecq.data import Form
    from brecq.deploy.against import distances
    from brecq.storage.sealed import finite

    console = make_console(quiet=as_json)
    use_device(machine)
    result = brecq.load(path)
    preprocessing = stored_preprocessing(result.metadata, changes.given())
    tell(console, "result", str(path))
    tell(console, "file", str(file))
    tell_preprocessing(console, preprocessing, in_parts=bool(result.parts))
    drawn = Draw(data.samples, seed.seed, by_default=given(ctx, ["samples"]) is None)
    form = Form(model=None if result.parts else result.converted)
    dataset = EvaluationData(data.data, preprocessing, drawn, None, form, data.max_skipped)
    tell_data(console, "data", data.data, dataset)
    subjects = list(choose_subjects(result, file, dataset, model, checkpoint, data.batch_size))
    values: dict[str, Any] = {}
    charted: list[Exported] = []
    for each in subjects:
        how: dict[str, Any] = {"format": format, "batch_size": data.batch_size}
        found = brecq.verify(each.result, each.file, each.data, bisect=bisect, tolerance=tolerance, **how)
        far = [] if model is None else distances(each.result, each.file, each.floating, each.data, **how)
        values[each.name] = as_values(found, far)
        if into_report:
            charted.append(for_report(each, found, far))
        if each.name:
            tell(console, "part", f"{each.name}, {each.file}")
        show(console, found, far)
    if into_report:
        tell(console, "report", str(draw(result, path, charted)))
    if as_json:
        typer.echo(json.dumps(finite(values if result.parts else values[""])))
    if not all(value["as_expected"] for value in values.values()):
        raise typer.Exit(DIFFERS_STATUS)


def as_values(found: Verification, far: Sequence[Distance]) -> dict[str, Any]:
    """For JSON."""
    tensors = {"against_float": [{"tensor": each.tensor, "sqnr": each.sqnr} for each in far]} if far else {}
    return {**dataclasses.asdict(found), "as_expected": found.as_expected, **tensors}


def for_report(subject: Subject, found: Verification, far: Sequence[Distance]) -> Exported:
    """The distances as a page takes them."""
    from brecq.page.exported import exported

    layers = [entry.layer for entry in subject.result.report.scope if entry.weights]
    tensors = [(each.tensor, each.signal, each.noise) for each in far]
    return exported(subject.file.name, found.runtime, found.samples, tensors, layers)


def draw(result: QuantResult, folder: Path, found: list[Exported]) -> Path:
    """Keep what was found in the result's folder, in place of earlier findings, and write its page anew."""
    from brecq.cli.report import PAGE
    from brecq.page.record import Record
    from brecq.page.render import write_page

    record = dataclasses.replace(Record.load(folder), exported=found)
    record.save(folder)
    return write_page(result, folder / PAGE, record)


@dataclass(frozen=True)
class Subject:
    """A result, its file, what both are run on, and the float network, where one is known. `name`: of a part."""

    name: str
    result: QuantResult
    file: Path
    data: Any
    floating: Any = None


def choose_subjects(
    result: QuantResult, file: Path, dataset: EvaluationData, model: str | None, checkpoint: o.Checkpoint, batch: int
) -> Iterator[Subject]:
    """The result and its file; of a network in parts each part with what it receives behind those before it.

    Raises:
        ConfigError: FILE is of no part; the network around the parts is needed and not known.
    """
    import brecq
    from brecq.data import Dataset, check
    from brecq.data.signature import Signature
    from brecq.data.windows import windowed
    from brecq.sources import load_source
    from brecq.submodules import parts

    spec, weights = model, checkpoint.weights
    if result.parts:
        spec, weights = choose_reference(result.metadata, model, weights, needed=True)
    floating = None if spec is None else load_source(spec, weights, trust_pickle=checkpoint.trust_pickle).model
    if not isinstance(result, brecq.CompositeResult):
        check(Signature(result.converted).bind(dataset.one_size()), like=result.example_inputs)
        yield Subject("", result, file, dataset, floating)
        return
    assert floating is not None
    files = {name: found for name in result.parts if (found := _file_of(name, file)) is not None}
    if not files:
        raise ConfigError(
            f"FILE is {str(file)!r}, and the parts of this result are {', '.join(result.parts)}: give the folder that "
            "brecq export wrote, or one of the files in it, which are named after them"
        )
    window = result.metadata.get("window")
    quantized = result.put_into(floating)
    with windowed(quantized, None if window is None else (window[0], window[1])):
        recorded = parts.record(quantized, list(files), [call for part in dataset for call in part.calls(batch)])
    for part in recorded:
        flat = parts.Flat(part.name, floating.get_submodule(part.name), part.interface)
        yield Subject(part.name, result.parts[part.name], files[part.name], Dataset(part.inputs), flat)


def _file_of(name: str, file: Path) -> Path | None:
    """A part's file, or folder: in the folder of all of them, or itself."""
    inside = sorted(file.iterdir()) if file.is_dir() and file.name != name else [file]
    return next((each for each in inside if each.name == name or each.with_suffix("").name == name), None)


def show(console: Console, found: Verification, far: Sequence[Distance] = ()) -> None:
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
            tell(console, "codes", describe_differing(found))
    for note in found.notes:
        tell(console, "note", note)
    if not found.exact:
        tell(console, "allowed", found.tolerance.describe())
    for failure in found.failures:
        tell(console, "failed", failure)
    if found.as_expected:
        tell(console, "verified", "the file is this result's and computes what the simulator computes")
    if far:
        console.print(distances_table(far, SHOWN))
    if far and all(each.is_output for each in far):
        tell(console, "note", "no tensor inside the file is shown: only what it returns is compared with float")
