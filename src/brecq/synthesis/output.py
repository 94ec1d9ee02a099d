"""The folder that a distilled set is kept in: inputs, pictures of them, and how well they match.

<folder>/distilled.npz       array x, float32 [n, C, ...]: inputs as the network takes them, already normalized
<folder>/contact_sheet.png   the first of them as pictures, clipped to what a picture can show
<folder>/distilled.json      configuration, and per batch norm how well the statistics are met
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from brecq.data.load import DISTILLED
from brecq.data.preprocessing import Preprocessing
from brecq.errors import DataError
from brecq.storage.files import write as write_file
from brecq.synthesis.distill import Distilled

SHEET, REPORT = "contact_sheet.png", "distilled.json"
COLUMNS, MOST_PICTURES, MOST_SIDE, GAP = 8, 64, 160, 2


def save(folder: Path | str, made: Distilled, preprocessing: Preprocessing | None) -> Path:
    """Write the set into `folder`; without a preprocessing the inputs are no pictures, and there is no contact sheet.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = Path(folder)
    if preprocessing is not None:
        picture = io.BytesIO()
        contact_sheet(made.inputs, preprocessing).save(picture, format="png")
        write_file(folder / SHEET, picture.getvalue(), DataError, parents=True)
    write_file(folder / REPORT, json.dumps(describe(made, preprocessing), indent=1).encode(), DataError, parents=True)
    arrays = io.BytesIO()
    np.savez(arrays, x=made.inputs.numpy())
    write_file(folder / DISTILLED, arrays.getvalue(), DataError, parents=True)
    return folder


def describe(made: Distilled, preprocessing: Preprocessing | None) -> dict[str, Any]:
    """The report as plain values, ready for JSON."""
    return {
        "config": made.config.to_dict(),
        "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
        "samples": len(made.inputs),
        "seconds": sum(batch.seconds for batch in made.batches) if made.batches else made.seconds,
        "layers": [dataclasses.asdict(layer) for layer in made.layers],
    }


def contact_sheet(inputs: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """The first inputs [N, 3, H, W] side by side, each at most `MOST_SIDE` pixels high and wide."""
    pictures = [Image.fromarray(pixels) for pixels in preprocessing.to_pixels(inputs[:MOST_PICTURES])]
    height, width = preprocessing.size
    scale = min(1.0, MOST_SIDE / max(height, width)) if max(height, width) > MOST_SIDE // 2 else 2.0
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (size[0] + GAP) - GAP, rows * (size[1] + GAP) - GAP), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture.resize(size), (column * (size[0] + GAP), row * (size[1] + GAP)))
    return sheet
