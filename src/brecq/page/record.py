"""What a run measured beside the result itself: kept in its folder, so that the page can be written again."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brecq.errors import CheckpointError
from brecq.storage.files import write as write_file
from brecq.storage.sealed import seal, unseal

RECORD = "record.json"

Box = list[float | str]


@dataclass(frozen=True)
class Origin:
    """What a page is of: the name of the network, empty where it is not known, and the command that repeats it."""

    model: str = ""
    command: str = ""

    def title(self, what: str) -> str:
        """`what of the network`."""
        return f"{what} of {self.model}" if self.model else what


@dataclass(frozen=True)
class Row:
    """One network of the final table. `metrics`: by name, e.g. `top-1 %`, infinite ones too; `size` in bytes,
    `seconds` wall time."""

    name: str
    metrics: dict[str, float]
    size: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Changed:
    """An input whose decision is another one after quantization.

    `picture` is a JPEG as base64; decisions are class numbers, `label` is `None` without labels.
    """

    picture: str
    label: int | None
    floating: int
    quantized: int


@dataclass(frozen=True)
class Detected:
    """What two detectors found in a picture, a JPEG as base64 of `width` and `height` pixels.

    A box is x1, y1, x2, y2 in these pixels, its score, and its class as it is called.
    """

    picture: str
    width: int
    height: int
    floating: list[Box]
    quantized: list[Box]


@dataclass(frozen=True)
class Exported:
    """An exported file beside the float network, on `samples`, in dB.

    `layers`: SQNR of their outputs by name, without those that have no noise or that the file does not show;
    `outputs`: of what the network returns, `None` without noise.
    """

    file: str
    runtime: str
    samples: int
    layers: dict[str, float]
    outputs: float | None


@dataclass(frozen=True)
class Record:
    """`command` repeats the run; `samples` were evaluated; pictures are JPEG files as base64."""

    command: str = ""
    rows: list[Row] = field(default_factory=list)
    samples: int = 0
    calibration: list[str] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)
    compared: int = 0
    detected: list[Detected] = field(default_factory=list)
    exported: list[Exported] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write it into `folder`."""
        values = dataclasses.asdict(self)
        for row in values["rows"]:  # JSON has no infinity: it is the text "inf" there
            row["metrics"] = {key: each if math.isfinite(each) else str(each) for key, each in row["metrics"].items()}
        text = seal({"format": "brecq record", **values})
        write_file(folder / RECORD, text.encode(), CheckpointError)

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Read it from `folder`; empty where there is none.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = folder / RECORD
        if not file.is_file():
            return cls()
        try:
            values: dict[str, Any] = unseal(file.read_bytes())
            values.pop("format")
            rows = [
                Row(**{**row, "metrics": {key: float(each) for key, each in row["metrics"].items()}})
                for row in values.pop("rows")
            ]
            changed = [Changed(**each) for each in values.pop("changed")]
            detected = [Detected(**each) for each in values.pop("detected", [])]
            exported = [Exported(**each) for each in values.pop("exported", [])]
            return cls(rows=rows, changed=changed, detected=detected, exported=exported, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{file} is damaged: {error}; delete it, and the page is written without it"
            ) from error
