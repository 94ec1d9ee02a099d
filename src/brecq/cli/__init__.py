"""The command `brecq`, one subcommand a verb."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from brecq.cli.benchmark import benchmark as _benchmark
from brecq.cli.distill import distill as _distill
from brecq.cli.doctor import doctor as _doctor
from brecq.cli.evaluate import evaluate as _evaluate
from brecq.cli.events import log
from brecq.cli.export import export as _export
from brecq.cli.hints import PairsCommand, SettingsCommand
from brecq.cli.inspect import inspect as _inspect
from brecq.cli.output import Terminated, ending_like_interrupted
from brecq.cli.processes import first_only, print_error, silence, together
from brecq.cli.profile import profile as _profile
from brecq.cli.quantize import quantize as _quantize
from brecq.cli.render import make_console
from brecq.cli.report import compare as _compare
from brecq.cli.report import report as _report
from brecq.cli.search import search as _search
from brecq.cli.share import card as _card
from brecq.cli.share import push as _push
from brecq.cli.targets import check as _check
from brecq.cli.targets import targets as _targets
from brecq.cli.verify import verify as _verify
from brecq.errors import BrecqError
from brecq.notice import BrecqWarning
from brecq.version import __version__

if TYPE_CHECKING:
    from brecq.ranks import Ranks

ERROR_STATUS, INTERRUPTED_STATUS, TERMINATED_STATUS = 2, 130, 143
BUG_STATUS = 70
"""As of `sysexits.h`: an internal fault of the program."""


class _Group(TyperGroup):
    """Turns errors into one line; `BRECQ_DEBUG=1` shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        # importing torchao beside a newer torch logs a deprecation, and compiling on a machine with a CUDA compiler
        # but no GPU a notice, that concern neither brecq nor its users
        for name in ("torch.utils._pytree", "torch.utils.cpp_extension"):
            logging.getLogger(name).setLevel(logging.ERROR)
        group: Ranks | None = None
        try:
            with warnings.catch_warnings(), ending_like_interrupted(), together() as group:
                warnings.showwarning = _show_warning(warnings.showwarning)
                return super().invoke(ctx)
        except BrecqError as error:
            if _is_debugging():
                raise
            print_error(" ".join(str(error).split()), group)
            raise typer.Exit(ERROR_STATUS) from None
        except KeyboardInterrupt as signal:
            raise typer.Exit(TERMINATED_STATUS if isinstance(signal, Terminated) else INTERRUPTED_STATUS) from None
        except Exception as error:
            is_usage = isinstance(error, typer.Abort) or hasattr(error, "exit_code")  # of the option parser
            if is_usage or _is_debugging() or getattr(error, "errno", None) == errno.EPIPE:
                raise
            message, status = _describe_unexpected(error)
            print_error(message, group)
            raise typer.Exit(status) from None


def _is_debugging() -> bool:
    return os.environ.get("BRECQ_DEBUG", "0") not in ("", "0")


def _describe_unexpected(error: Exception) -> tuple[str, int]:
    """One line on an error that brecq does not raise on purpose, and the exit status."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, OSError) and error.errno is not None:
        file = "" if error.filename is None else f" ({error.filename})"
        return f"{error.strerror}{file}; make room or mend the permissions, and try again", ERROR_STATUS
    if isinstance(error, MemoryError) or "out of memory" in reason or "can't allocate memory" in reason:
        return f"there is not enough memory: {reason}; take fewer samples or a smaller batch size", ERROR_STATUS
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return (
        f"this is a bug in brecq, not in what you gave: {reason}{where}; please report it with what the same command "
        "prints with BRECQ_DEBUG=1"
    ), BUG_STATUS


def _is_ours(filename: str) -> bool:
    return Path(filename).is_relative_to(Path(__file__).parents[1])


def _show_warning(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Print warnings that brecq raises as one line, and all others as `otherwise` does."""

    def show(message: Any, category: Any, filename: str, *rest: Any) -> None:
        if issubclass(category, BrecqWarning) or _is_ours(filename):
            log("warning", text=str(message))
            make_console(stderr=True).print(Text(f"warning: {message}", style="yellow"), soft_wrap=True)
        else:
            otherwise(message, category, filename, *rest)

    return show


app = typer.Typer(
    name="brecq",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Quantize trained PyTorch networks to 8, 4, 3 or 2 bits by block reconstruction.",
)
app.command("quantize", cls=PairsCommand)(_quantize)
app.command("evaluate")(first_only(_evaluate))
app.command("distill", cls=SettingsCommand)(_distill)
app.command("inspect", cls=PairsCommand)(first_only(_inspect))
app.command("report")(first_only(_report))
app.command("compare")(first_only(_compare))
app.command("card")(first_only(_card))
app.command("push")(first_only(_push))
app.command("export")(first_only(_export))
app.command("verify")(first_only(_verify))
app.command("benchmark")(first_only(_benchmark))
app.command("search", cls=PairsCommand)(_search)
app.command("targets")(first_only(_targets))
app.command("check", cls=PairsCommand)(first_only(_check))
app.command("profile")(first_only(_profile))
app.command("doctor")(first_only(_doctor))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"brecq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):  # file names may be no valid text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    silence()
    app()
