"""The options that several commands share, and that are no setting of a configuration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from brecq.settings import BATCH_SIZE, DATA, MAX_SKIPPED, MODEL, MOST, RUN, check, seed, setting, threads
from brecq.text import parse_numbers, parse_resize, parse_size

Spec = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm:NAME, torchvision:NAME, hf:NAME_OR_PATH, file.py:callable, program.pt2 or model.onnx.",
    ),
]
Result = Annotated[Path, typer.Argument(metavar="RESULT", help="The folder that `brecq quantize` wrote.")]
Exported = Annotated[Path, typer.Argument(metavar="FILE", help="The file that `brecq export` wrote.")]
Submodules = Annotated[
    list[str] | None,
    typer.Option(
        "--submodule", metavar="NAME", rich_help_panel=MODEL,
        help="Quantize this submodule alone; repeatable: several are quantized in one run, each a program of its own. "
        "By default those of torchvision's detectors that hold their layers.",
    ),
]  # fmt: skip
FormatOfFile = Annotated[
    str | None, typer.Option("-f", "--format", metavar="NAME", help="The format, if FILE's name does not tell.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Options that are checked as they are made."""

    def __post_init__(self) -> None:
        check(self, options=True)


def samples(default: int | None, help: str, **known: Any) -> Any:
    """An option that counts samples."""
    return setting(default, help, low=1, high=MOST, metavar="N", panel=DATA, **known)


def max_skipped() -> Any:
    """The option that says how many pictures may be unreadable."""
    return setting(
        MAX_SKIPPED,
        "share of the pictures that may be unreadable, and are left out and named; one may be of any two or more, "
        "unless this is 0",
        low=0, high=1, metavar="SHARE", panel=DATA,
    )  # fmt: skip


def batch_size(default: int) -> Any:
    """An option that says how much is computed at once."""
    return field(default=default, metadata={"setting": BATCH_SIZE})


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Checked):
    """Where the model's weights come from."""

    weights: Path | None = setting(
        None, "checkpoint to load into the model (.pt, .pth, .safetensors)", metavar="FILE", panel=MODEL
    )
    trust_pickle: bool = setting(False, "load checkpoints that run code (only your own)", panel=MODEL)


PIXELS = ("mean", "std", "resize", "interpolation", "color", "fit", "fill", "multiple")
"""Fields of `Changes` that matter where there are pictures."""


@dataclass(frozen=True, kw_only=True)
class Changes(Checked):
    """What is different from the model's own preprocessing: the fields of `Preprocessing` by their names."""

    mean: tuple[float, ...] | None = setting(
        None, "override the mean of pixels in 0 to 1", metavar="R,G,B", panel=DATA, parse=parse_numbers
    )
    std: tuple[float, ...] | None = setting(
        None, "override their standard deviation", metavar="R,G,B", panel=DATA, parse=parse_numbers
    )
    size: tuple[int, int] | None = setting(
        None, "override the height and width", metavar="N|H,W", panel=DATA, parse=parse_size
    )
    resize: str | None = setting(
        None, "override the short side (or both) before the center crop; none scales straight to the size",
        metavar="N|H,W|none", panel=DATA, check=parse_resize,
    )  # fmt: skip
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = setting(
        None, "override the interpolation", panel=DATA
    )
    color: Literal["RGB", "BGR", "GRAY"] | None = setting(
        None, "override the order of channels; GRAY for networks that take one", panel=DATA
    )
    fit: Literal["crop", "letterbox", "corner", "original", "own"] | None = setting(
        None,
        "how pictures of another shape fit into the size: crop; letterbox pads both sides, corner the right and the "
        "bottom; original leaves their scale alone; own, of detectors in parts, gives each at its own size",
        panel=DATA,
    )
    fill: tuple[float, ...] | None = setting(
        None, "what is padded with, in 0 to 1 (by default gray, 114 of 255)", metavar="R,G,B", panel=DATA,
        parse=parse_numbers,
    )  # fmt: skip
    multiple: int | None = setting(
        None, "round the size up to a multiple of this", low=1, high=4096, flags=("--pad-multiple",), metavar="N",
        panel=DATA,
    )  # fmt: skip

    def given(self) -> dict[str, Any]:
        """Arguments of `Preprocessing.replace`: only what was given."""
        changes = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return changes if self.resize is None else {**changes, "resize": parse_resize("--resize", self.resize)}


@dataclass(frozen=True, kw_only=True)
class Examples(Checked):
    """Where inputs of the right shapes come from, for commands that only look at a network."""

    data: Path | None = setting(
        None, "inputs that the network takes: a folder of images, or .npz", metavar="PATH", panel=DATA
    )


@dataclass(frozen=True, kw_only=True)
class Output(Checked):
    """The folder of a run."""

    output: Path = setting(help="where the result goes", flags=("-o", "--output"), metavar="DIR", panel=RUN)
    resume: bool = setting(False, "continue the run in the output folder", panel=RUN)
    force: bool = setting(False, "overwrite what an earlier run left in the output folder", panel=RUN)
    log_json: Path | None = setting(
        None, "append what the run tells to this file, one JSON object a line", metavar="FILE", panel=RUN
    )


@dataclass(frozen=True, kw_only=True)
class Machine(Checked):
    """What the work is done on."""

    device: str = setting(
        "auto",
        "where to compute: auto (CUDA where there is a device), cpu, cuda, cuda:1, …",
        metavar="NAME",
        panel=RUN,
    )
    threads: int | None = threads(None, "CPU threads", panel=RUN)


@dataclass(frozen=True, kw_only=True)
class Seed(Checked):
    """For commands that take no `QuantConfig`."""

    seed: int = seed()
