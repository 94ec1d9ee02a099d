"""How exported files are timed: settings that validate themselves."""

from __future__ import annotations

from dataclasses import dataclass

from brecq.settings import MOST, check, documented, setting, threads
from brecq.text import parse_value


@documented
@dataclass(frozen=True)
class BenchmarkConfig:
    """How an exported file is timed beside the float network."""

    # fmt: off
    batches: tuple[int, ...] = setting(
        (1, 16), "batch sizes", usage="; repeatable", flags=("--batch",), metavar="N", low=1, high=MOST,
        repeatable=True, parse=lambda option, texts: tuple(parse_value(option, text, int) for text in texts),
    )
    runs: int = setting(50, "calls of each network and batch size", low=1, high=MOST, metavar="N")
    threads: int = threads(1, "threads of the runtime")
    seconds: float = setting(20.0, "at most about this long a batch size", low=0, high=MOST, metavar="S")
    # fmt: on

    def __post_init__(self) -> None:
        check(self)
