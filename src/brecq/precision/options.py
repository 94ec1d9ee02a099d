"""What can be asked of a search for bits and of its latency tables: settings that validate themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brecq.config import FLOAT, WIDE, check_bits
from brecq.errors import ConfigError
from brecq.settings import MOST, Setting, check, documented, seed, setting, threads
from brecq.text import parse_bit_list

Algorithm = Literal["exact", "genetic", "random"]
Metric = Literal["fisher", "fisher_diagonal", "relative"]
"""How the error Δz of a block's output becomes a loss, mean over samples:

`fisher`: ½ Δzᵀ F Δz with the whole Fisher information F, the second-order loss in nats.
`fisher_diagonal`: ½ Δzᵀ diag(F) Δz, the paper's equation 10.
`relative`: |Δz|² / |z|², which knows nothing of the rest of the network.
"""
Quality = Literal["fast", "reconstructed"]
Cross = Literal["none", "lowest", "all"]

SEARCH, _SENSITIVITY = "The search", "Sensitivities"


def check_choices(name: str, choices: tuple[int, ...]) -> None:
    """Raise `ConfigError` unless there is a bit-width to choose from, and each is 2 to 8."""
    if not choices:
        raise ConfigError(f"{name} is empty; give bit-widths to choose from, such as 2,4,8")
    for choice in choices:
        if choice in (WIDE, FLOAT):
            what = f"{FLOAT}, floating point" if choice == FLOAT else str(WIDE)
            raise ConfigError(f"{name} holds {what}; a search chooses between 2 and 8 bits")
        check_bits(name, choice)


@documented
@dataclass(frozen=True)
class SurveyConfig:
    """How sensitivities are measured."""

    # fmt: off
    bits: tuple[int, ...] = setting(
        (2, 3, 4, 8), "bits that weights choose from", metavar="N,N,…", panel=SEARCH, parse=parse_bit_list,
        check=check_choices,
    )
    activation_bits: tuple[int, ...] | None = setting(
        None, "bits that activations choose from. By default those of -a for all", flags=("--search-activations",),
        metavar="N,N,…", panel=SEARCH, parse=parse_bit_list, check=check_choices,
    )
    quality: Quality = setting(
        "fast",
        "fast rounds weights to nearest; reconstructed learns each block at every bit-width below 8, with the recipe",
        panel=_SENSITIVITY,
    )
    cross: Cross = setting(
        "lowest",
        "pairs of a block's layers to measure: none, both at their lowest bits (the paper), or all",
        panel=_SENSITIVITY,
    )
    draws: int = setting(
        1, "random vectors a sample that the Fisher information is estimated with", low=1, high=MOST, metavar="N",
        panel=_SENSITIVITY,
    )
    # fmt: on

    def __post_init__(self) -> None:
        check(self)


FRONT_SIZE = Setting(
    "also the front of the first budget's cost", flags=("--pareto",), low=2, high=10_000, metavar="N", panel=SEARCH
)


@documented
@dataclass(frozen=True)
class SearchConfig:
    """How bits are chosen from sensitivities."""

    algorithm: Algorithm = setting(
        "exact", "an integer program, the paper's genetic search, or a baseline that only fits", panel=SEARCH
    )
    metric: Metric = setting("fisher", "the predicted loss", panel=SEARCH)
    seed: int = seed()

    def __post_init__(self) -> None:
        check(self)


@documented
@dataclass(frozen=True)
class ProfileConfig:
    """How layers are timed."""

    repeats: int = setting(50, "timed runs; the median counts", low=1, high=MOST, metavar="N")
    warmup: int = setting(10, "runs before them", low=0, high=MOST, metavar="N")
    threads: int = threads(1, "threads of the runtime")

    def __post_init__(self) -> None:
        check(self)
