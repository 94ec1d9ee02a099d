"""What commands read from their arguments; `ConfigError` and `DataError` name what is wrong."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from brecq.errors import DataError
from brecq.text import parse_settings


def typed() -> str:
    """The command line that repeats what this process does, as a shell would take it: of a run that was resumed the
    one that began it."""
    return shlex.join(["brecq", *(word for word in sys.argv[1:] if word != "--resume")])


def parse_format_options(format: str, settings: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` settings of an export format, each as the type that the format's writer declares."""
    from brecq.deploy.formats import option_types

    return parse_settings("--option", settings, option_types(format), f"option of the format {format}")


def require_path(option: str, path: Path | None, *, file: bool = False) -> None:
    """Raise `DataError` unless `path` is there (and a file, with `file`); `None` passes."""
    if path is None:
        return
    if not os.path.exists(path):
        raise DataError(f"{option} is {str(path)!r}, which does not exist; check the path")
    if file and not os.path.isfile(path):
        raise DataError(f"{option} is {str(path)!r}, which is not a file")


def require_data(option: str, path: Path | None) -> None:
    """The same for data, where the path of an `.npz` file may name arrays: `data.npz:x,y`."""
    if path is not None:
        from brecq.data.arrays import split_selector

        require_path(option, split_selector(path)[0])


def given(ctx: typer.Context, names: Sequence[str], *, others: bool = False) -> str | None:
    """The first parameter among `names` (or of all `others`) that stands on the command line, as its option."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(str(parameter.name))
        if (parameter.name in names) != others and source is not None and source.name == "COMMANDLINE":
            return str(parameter.opts[-1])
    return None


def join_pairs(arguments: Sequence[str], option: str = "--set") -> list[str]:
    """`--set PATTERN SETTINGS` as one value, `--set "PATTERN SETTINGS"`: option parsers take one value each time."""
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*joined, argument, *rest]
        joined.append(argument)
        if argument == option and rest:
            joined.append(rest.pop(0))
        elif not argument.startswith(f"{option}="):
            continue
        if " " not in joined[-1].strip() and rest and not rest[0].startswith("-"):
            joined[-1] += f" {rest.pop(0)}"
    return joined
