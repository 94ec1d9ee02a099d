"""`brecq export`: a saved result as a file that a runtime executes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from brecq.cli import options as o
from brecq.cli.completion import names_of
from brecq.cli.inputs import tell
from brecq.cli.parsing import parse_format_options, require_path
from brecq.cli.render import make_console
from brecq.units import format_bytes


def export(
    path: o.Result,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")],
    format: Annotated[
        str | None,
        typer.Option(
            "-f", "--format", metavar="NAME", help="The format (brecq export --formats); by default as FILE ends.",
            autocompletion=names_of("--format"),
        ),
    ] = None,
    pack: Annotated[
        str | None,
        typer.Option(metavar="FORM", help="Short for --option pack=FORM (onnx: planes, cast or native)."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the format; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    _formats: Annotated[
        bool,
        typer.Option(
            "--formats", help="Show the formats and their options, and exit.", is_eager=True,
            callback=lambda wanted: show_formats() if wanted else None,
        ),
    ] = False,
) -> None:  # fmt: skip
    """Write a saved RESULT as a file for a runtime.

    brecq export out/ --format onnx -o model.onnx
    """
    import brecq
    from brecq.deploy.formats import choose
    from brecq.deploy.sizes import ideal_bytes
    from brecq.errors import ConfigError

    require_path("RESULT", path)
    if format is not None:
        choose(output, format)
    if os.path.exists(output) and not force:
        raise ConfigError(f"{str(output)!r} exists; replace it with --force, or name another file")
    result = brecq.load(path)
    format = choose(output, format, parts=bool(result.parts)).name
    chosen = parse_format_options(format, [*(options or []), *([f"pack={pack}"] if pack is not None else [])])

    console = make_console()
    tell(console, "result", str(path))
    exported = brecq.export(result, output, format, **chosen)
    for note in exported.notes:
        tell(console, "note", note)
    ideal = format_bytes(sum(map(ideal_bytes, result.parts.values() or [result])))
    tell(console, "saved", f"{output}, {format_bytes(exported.size)} ({ideal} of weights, biases and scales)")


def show_formats() -> None:
    """Print every format, what it is for, and the options it takes."""
    from brecq.cli.render import make_table
    from brecq.deploy.formats import FORMATS, option_types
    from brecq.errors import ExportError
    from brecq.text import describe_type

    table = make_table("Formats", ["format", "file", "for", "options"])
    for name, format in FORMATS.items():
        try:
            options = "\n".join(f"{key}: {describe_type(kind)}" for key, kind in option_types(name).items())
        except ExportError:
            options = escape(f"(needs pip install 'brecq[{format.extra}]')")
        table.add_row(name, format.suffix or "folder", format.summary, options)
    make_console().print(table)
    raise typer.Exit
