"""The folder of a distilled set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from brecq import DistillConfig
from brecq.data import Preprocessing, iter_data, load_data
from brecq.errors import DataError
from brecq.synthesis.distill import Distilled
from brecq.synthesis.match import LayerMatch
from brecq.synthesis.output import contact_sheet, save


@pytest.fixture
def made() -> Distilled:
    inputs = torch.randn(10, 3, 16, 16)
    return Distilled(inputs, [LayerMatch("bn1", 1.0, 0.5, 0.25, 0.125)], DistillConfig(), [], 1.0)


def test_the_inputs_come_back_bit_for_bit(made: Distilled, preprocessing: Preprocessing, tmp_path: Path) -> None:
    folder = save(tmp_path / "set", made, preprocessing)
    for path in (folder, folder / "distilled.npz"):  # the contact sheet beside them is no sample
        assert torch.equal(load_data(path, preprocessing, None, 0).inputs[0], made.inputs)
        assert torch.equal(torch.cat([part.inputs[0] for part in iter_data(path, None)]), made.inputs)
    drawn = load_data(folder, preprocessing, 6, 3)
    index = torch.tensor([int(name.removeprefix("distilled.npz[").removesuffix("]")) for name in drawn.names])
    assert torch.equal(drawn.inputs[0], made.inputs[index])


def test_the_report_says_how_it_was_made(made: Distilled, preprocessing: Preprocessing, tmp_path: Path) -> None:
    report = json.loads((save(tmp_path, made, preprocessing) / "distilled.json").read_text())
    assert DistillConfig(**report["config"]) == made.config
    assert Preprocessing.from_dict(report["preprocessing"]) == preprocessing
    assert report["layers"] == [
        {"layer": "bn1", "mean_before": 1.0, "std_before": 0.5, "mean_after": 0.25, "std_after": 0.125}
    ]


def test_the_contact_sheet_shows_the_pictures(preprocessing: Preprocessing) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    sheet = contact_sheet(preprocessing.normalize_pixels(pixels), preprocessing)
    assert sheet.size == (8 * (32 + 2) - 2, 2 * (32 + 2) - 2)  # small pictures are doubled
    ninth = sheet.crop((0, 34, 32, 66)).resize((16, 16), Image.Resampling.BOX)
    assert np.abs(np.asarray(ninth).astype(int) - pixels[8]).mean() < 25
    assert sheet.getpixel((200, 50)) == (255, 255, 255)


def test_inputs_that_are_no_pictures_have_no_sheet(made: Distilled, tmp_path: Path) -> None:
    folder = save(tmp_path, made, None)
    assert sorted(file.name for file in folder.iterdir()) == ["distilled.json", "distilled.npz"]


def test_a_folder_that_cannot_be_written(made: Distilled, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*; choose another place"):
        save(tmp_path / "file", made, None)
