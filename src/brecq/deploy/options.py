"""How exported files are timed: settings that validate themselves."""

from __future__ import annotations

from dataclasses import dataclass

from brecq.settings import MOST, check, documented, setting, threads
from brecq.text import parse_value

_ALLOWED = "Differences allowed where float operators cause them"


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


@documented
@dataclass(frozen=True)
class Tolerance:
    """How far a file may be from the simulator where float operators or other kernels excuse a difference.

    A float operator's last bit tips a code now and then, and takes what follows with it: outputs may differ by more
    the deeper the network. What a tensor's codes are, computed from the file's own codes before it, may not.
    """

    # fmt: off
    codes: float = setting(
        1.0, "largest share of a tensor's codes, in percent, that may differ, each by one step", low=0, high=100,
        flags=("--allow-codes",), metavar="PERCENT", panel=_ALLOWED,
    )
    largest: float = setting(
        64.0, "largest difference of an output, in steps", low=0, high=MOST, flags=("--allow-largest",),
        metavar="STEPS", panel=_ALLOWED,
    )
    mean: float = setting(
        8.0, "mean difference of outputs, in steps", low=0, high=MOST, flags=("--allow-mean",), metavar="STEPS",
        panel=_ALLOWED,
    )
    agreement: float = setting(
        75.0, "least share of equal predictions, in percent", low=0, high=100, flags=("--agreement",),
        metavar="PERCENT", panel=_ALLOWED,
    )
    # fmt: on

    def __post_init__(self) -> None:
        check(self)

    def describe(self) -> str:
        """In words."""
        return (
            f"at most {self.codes:g} % of a tensor's codes one step apart, outputs {self.largest:g} steps apart and "
            f"{self.mean:g} on average, {self.agreement:g} % agreement"
        )
