"""`brecq targets` and `brecq check`: what runtimes accept, and what one makes of a model before any work."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from brecq.cli import options as o
from brecq.cli.command import Without, command
from brecq.cli.completion import names_of
from brecq.cli.inputs import require_whole, tell
from brecq.cli.inspect import choose_inputs, describe_inputs
from brecq.cli.parsing import require_data, require_path
from brecq.cli.render import make_console, make_table
from brecq.config import FLOAT, QuantConfig
from brecq.errors import ConfigError
from brecq.targets import WIDE, Target, load, names
from brecq.units import format_bytes, short_count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from brecq.legality import Legality


def targets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show the whole table of one.", autocompletion=names_of("--target")),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the targets, or show what one accepts.

    brecq targets tensorrt
    """
    chosen = [load(each) for each in (names() if name is None else [name])]
    if as_json:
        found = [dataclasses.asdict(each) for each in chosen]
        typer.echo(json.dumps(found if name is None else found[0], indent=2))
        return
    console = make_console()
    if name is None:
        console.print(overview(chosen))
        return
    (target,) = chosen
    for label, text in (
        ("target", f"{target.title} {target.version}"),
        ("source", target.source),
        ("executed", target.executed or "not here: the table follows the source"),
        ("format", target.format),
        ("activations", zero_points(target)),
        ("symmetric", f"weights of {ranges(target.symmetric)} bits" if target.symmetric else "no weights need be"),
        ("biases", f"stored as {target.biases}"),
    ):
        tell(console, label, text)
    show_kernels(console, target, "Kernels")
    if target.wide is not None:
        wide = target.at(WIDE)
        show_kernels(console, wide, "Kernels of networks with 16-bit activations, which all have them")
        tell(console, "activations", zero_points(wide))


@command
def check(
    spec: o.Spec,
    config: Annotated[
        QuantConfig,
        Without(("method", "recipe", "autocast", "memory_budget", "class_axis", "seed", "granularity", "blocks")),
    ],
    checkpoint: o.Checkpoint,
    changes: o.Changes,
    examples: o.Examples,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, always in full.")] = False,
) -> None:
    """Say which layers of MODEL are legal at which widths on --target NAME, and what stays float; changes nothing.

    The exit status is 1 if the export would refuse MODEL.

    brecq check timm:mobilenetv2_100 --target tensorrt -w 8
    """
    if config.target is None:
        raise ConfigError(f"--target is missing; give one of {', '.join(names())}")
    require_path("--weights", checkpoint.weights, file=True)
    require_data("--data", examples.data)

    from brecq.legality import check as check_model
    from brecq.sources import load_source

    source = load_source(spec, checkpoint.weights, trust_pickle=checkpoint.trust_pickle, pretrained=False)
    require_whole(source, "are checked: brecq inspect shows what is quantized of this one")
    inputs = choose_inputs(source, changes, examples.data)
    found = check_model(source.model, inputs, config)
    if as_json:
        sums = {"weight_bytes": found.weight_bytes, "float_macs": found.float_macs}
        typer.echo(json.dumps({**dataclasses.asdict(found), **sums}, indent=2))
    else:
        show(load(config.target), f"{source.name}, {describe_inputs(inputs)}", found)
    if found.refused:
        raise typer.Exit(1)


def show(target: Target, model: str, found: Legality) -> None:
    """What a target makes of a model, for people."""
    console = make_console()
    tell(console, "model", model)
    tell(console, "target", f"{target.title} {target.version}, format {target.format}")
    console.print(layer_table(found))
    if found.floats:
        parts = (f"{each.count} {each.op} ({short_count(each.elements)} numbers)" for each in found.floats)
        tell(console, "in float", ", ".join(parts))
    else:
        tell(console, "in float", "nothing without a weight")
    tell(
        console,
        "in all",
        f"{format_bytes(found.weight_bytes)} of weights, without scales and biases, "
        f"{found.float_macs:.1f} % of MACs in float",
    )
    if found.refused:
        tell(console, "refused", found.refused)


def overview(chosen: list[Target]) -> Table:
    """A line a target."""
    columns = ("name", "runtime", "weights", "activations", "zero points", "executed")
    table = make_table("Targets", columns)
    for each in chosen:
        kernels = (*each.kernels, *(() if each.wide is None else each.wide.kernels))
        weights = ranges(sorted({w for kernel in kernels for w in kernel.weights}))
        activations = ranges(sorted({a for kernel in kernels for a in kernel.activations}))
        zero = "0" if each.zero_point == "zero" else "any"
        table.add_row(each.name, f"{each.title} {each.version}", weights, activations, zero, each.executed or "no")
    return table


def zero_points(target: Target) -> str:
    return "signed, zero point 0" if target.zero_point == "zero" else "any zero point"


def show_kernels(console: Console, target: Target, title: str) -> None:
    """The kernels of a table, and what computes on codes besides."""
    console.print(kernel_table(target, title))
    others = ", ".join(f"{operator} ({rule})" for operator, rule in target.operators.items())
    tell(console, "on codes", others)


def kernel_table(target: Target, title: str) -> Table:
    """A line a kernel."""
    table = make_table(title, ("layers", "weights", "activations", "computes", "in the file", "scales", "output"))
    for kernel in target.kernels:
        stored = ", ".join(f"{width} as {bits}" for width, bits in kernel.stored.items()) or "as they are"
        table.add_row(
            ", ".join(kernel.operators), ranges(kernel.weights), ranges(kernel.activations), kernel.computes, stored,
            "per channel" if kernel.per_channel else "one in all",
            "may stay float" if kernel.writes_float else "quantized",
        )  # fmt: skip
    return table


def layer_table(found: Legality) -> Table:
    """A line for all layers that are treated alike."""
    columns = ("layers", "weights", "activations", "in the file", "computes", "MACs\n%", "why")
    table = make_table("Layers", columns, numeric=("MACs\n%",))
    total = max(sum(layer.macs for layer in found.layers), 1)
    groups: dict[object, list[int]] = {}
    for index, layer in enumerate(found.layers):
        key = (layer.kind, layer.weights, layer.activations, layer.stored, layer.computes, layer.reason)
        groups.setdefault(key, []).append(index)
    for members in groups.values():
        first = found.layers[members[0]]
        named = f" ({first.layer})" if len(members) == 1 else ""
        share = 100 * sum(found.layers[index].macs for index in members) / total
        table.add_row(
            f"{len(members)} {first.kind}{named}", bits(first.weights), bits(first.activations), bits(first.stored),
            first.computes, f"{share:.1f}", first.reason,
        )  # fmt: skip
    return table


def bits(width: int) -> str:
    return "float" if width == FLOAT else f"{width} bit"


def ranges(widths: tuple[int, ...] | list[int]) -> str:
    """`2–8, float`."""
    whole = [width for width in widths if width != FLOAT]
    runs: list[list[int]] = []
    for width in whole:
        if runs and runs[-1][-1] == width - 1:
            runs[-1].append(width)
        else:
            runs.append([width])
    parts = [f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join([*parts, *(["float"] if FLOAT in widths else [])])
