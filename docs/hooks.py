"""Hooks of mkdocs: the page of the command line is made from the program itself."""

from __future__ import annotations

from typing import Any

import typer.main
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

PAGE = "reference/cli.md"


def on_files(files: Files, config: Any) -> Files:
    """Add the page of the command line."""
    from brecq.cli import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="brecq")
    text = get_docs_for_click(obj=command, ctx=context, name="brecq", title="Command line")
    files.append(File.generated(config, PAGE, content=text))
    return files
