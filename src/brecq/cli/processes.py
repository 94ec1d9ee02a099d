"""Commands in several processes (`torchrun -m brecq …`): the first prints and writes, the others only compute."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from brecq.cli.render import PIPE_WIDTH, make_console

if TYPE_CHECKING:
    from brecq.ranks import Ranks


def launched() -> bool:
    """Whether this is one of several processes that `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ


def is_first() -> bool:
    """Whether this process prints and writes."""
    return not launched() or os.environ.get("RANK") == "0"


def silence() -> None:
    """Let all processes but the first print nothing, but for what ends them."""
    if not is_first():
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextmanager
def together() -> Iterator[Ranks | None]:
    """Inside, the processes work together; `None` is a process by itself."""
    if not launched():
        yield None
        return
    from brecq import ranks

    ranks.join()
    with ranks.joined() as group:
        yield group


def print_error(message: str, group: Ranks | None) -> None:
    """Say what ended this process, unless another one ended them all."""
    if group is None or group.tells():
        console = make_console(stderr=True) if is_first() else Console(file=sys.__stderr__, width=PIPE_WIDTH)
        console.print(Text(f"error: {message}", style="bold red"), soft_wrap=True)


def first_only(function: Callable[..., None]) -> Callable[..., None]:
    """A command that the first process does by itself."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        if not launched():
            function(*args, **kwargs)
        elif is_first():
            from brecq import ranks

            with ranks.alone():
                function(*args, **kwargs)

    return run
