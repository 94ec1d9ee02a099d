"""`brecq card` and `brecq push`: a result on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brecq.cli.inputs import tell
from brecq.cli.parsing import require_path
from brecq.cli.render import make_console
from brecq.errors import ConfigError

Result = Annotated[Path, typer.Argument(metavar="RESULT", help="The folder that `brecq quantize` wrote.")]
License = Annotated[
    str | None,
    typer.Option("--license", metavar="ID", help="The licence's identifier on the hub, such as apache-2.0."),
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="USER/NAME", help="The float network on the hub. Default: that of a hf: source."),
]
Task = Annotated[
    str | None,
    typer.Option("--task", metavar="TASK", help="The hub's name of the task, such as image-classification."),
]
Replace = Annotated[bool, typer.Option("--force", help="Replace a README.md that brecq did not write.")]


def card(
    path: Result,
    repository: Annotated[str, typer.Option("--repo", metavar="USER/NAME", help="Where it will be.")] = "USER/NAME",
    license: License = None,
    base: Base = None,
    task: Task = None,
    force: Replace = False,
) -> None:
    """Write a model card, README.md, into the folder of RESULT: numbers, how to run it, how to make it again.

    brecq card out/ --license apache-2.0
    """
    require_path("RESULT", path)
    file, _ = _write(path, repository, license, base, task, force)
    tell(make_console(), "saved", str(file))


def push(
    path: Result,
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository; made if there is none.")],
    report: Annotated[
        bool, typer.Option("--report", help="Upload report.html too: it shows pictures of the calibration data.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    license: License = None,
    base: Base = None,
    task: Task = None,
    force: Replace = False,
) -> None:
    """Upload RESULT with its card and the exported files in its folder to the Hugging Face hub.

    Nothing else in the folder is uploaded.

    brecq push out/ USER/NAME --license apache-2.0
    """
    require_path("RESULT", path)

    from brecq.checkpoint.directory import FILES
    from brecq.page.card import CARD
    from brecq.page.render import PAGE
    from brecq.storage import hub

    if report:
        require_path("--report", path / PAGE)
    name, _ = hub.repository(repository)
    console = make_console()
    file, exported = _write(path, name, license, base, task, force)
    tell(console, "saved", str(file))
    files = [*FILES, CARD, *([PAGE] if report else []), *exported]
    address = hub.push(path, repository, files, private=private, message=f"{name}, quantized by brecq")
    tell(console, "pushed", f"{len(files)} files: {address}")
    tell(console, "load", f'brecq.load("hf:{repository}")')


def _write(
    path: Path, repository: str, license: str | None, base: str | None, task: str | None, force: bool
) -> tuple[Path, list[str]]:
    """The card's file, and the exported files that it names; others in the folder are told of and left alone."""
    import brecq
    from brecq.deploy.whose import exported_files
    from brecq.errors import CheckpointError
    from brecq.page.card import CARD, MARK
    from brecq.page.card import card as make_card
    from brecq.page.record import Record
    from brecq.storage.files import write
    from brecq.storage.hub import repository as check

    check(repository)
    result = brecq.load(path)
    if result.parts:
        raise ConfigError(
            f"{str(path)!r} was quantized in parts, of which the hub takes each by itself: name one of the folders in "
            f"{str(path / 'parts')!r}"
        )
    file = path / CARD
    if file.exists() and MARK not in file.read_text(encoding="utf-8", errors="replace") and not force:
        raise ConfigError(f"{str(file)!r} is not brecq's; replace it with --force, or move it away")
    mine, others = exported_files(result, path)
    for name in others:
        tell(make_console(), "left out", f"{name}: exported from another result, or not by brecq")
    text = make_card(result, Record.load(path), repository, mine, license=license, base=base, task=task)
    write(file, text.encode(), CheckpointError)
    return file, mine
