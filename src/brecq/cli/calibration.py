"""Calibration data of commands that learn or measure: how much of it, read and told of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brecq.cli import options as o
from brecq.cli.inputs import tell, tell_data
from brecq.cli.tasks import Judged

if TYPE_CHECKING:
    from rich.console import Console

    from brecq.data import Dataset, Preprocessing
    from brecq.data.pictures import Pictures
    from brecq.sources import Source

OF_DETECTORS = 64
"""Calibration samples of detectors by default."""


def size_option(usual: int) -> Any:
    """The option that says how many samples there are; `None`: `how_many`."""
    return o.samples(
        None, f"calibration samples. By default {usual}, of detectors {OF_DETECTORS}: their pictures are large"
    )


def how_many(asked: int | None, usual: int, judged: Judged, source: Source) -> int:
    """Calibration samples as asked for, or as are taken by default."""
    if asked is not None:
        return asked
    return OF_DETECTORS if "detection" in (judged.task, source.task) else usual


def read_calibration(
    path: Path,
    asked: int | None,
    usual: int,
    max_skipped: float,
    judged: Judged,
    source: Source,
    preprocessing: Preprocessing | None,
    seed: int,
    console: Console,
) -> Dataset | Pictures:
    """So many samples, without targets: nothing is learned from these, nor measured against them."""
    from brecq.data.load import load_samples

    size = how_many(asked, usual, judged, source)
    found = load_samples(
        path, preprocessing, size, seed, form=judged.form("train", source.model), at_most=asked is None,
        max_skipped=max_skipped,
    )  # fmt: skip
    found = dataclasses.replace(found, targets=None, origin="")
    tell_data(console, "calibration", path, found)
    if asked is None and size < usual and len(found) == size:
        tell(console, "", f"{size} by default, as a detector's pictures are large; --calib-size N takes more")
    return found
