"""Every format's files tell whose they are, and what lies beside them goes with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import brecq
from brecq.deploy.formats import FORMATS
from brecq.deploy.whose import NAMELESS, exported_files
from brecq.errors import ExportError


@pytest.mark.parametrize("name", [each.name for each in FORMATS.values() if each.suffix])
def test_files_are_whose_they_were_exported_from(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 4))
    target = "tensorrt" if name == "tensorrt" else None
    first, second = (
        brecq.quantize(model.eval(), torch.randn(16, 3, 4, 4), brecq.QuantConfig(8, 8, method="rtn", target=target))
        for _ in range(2)
    )
    try:
        brecq.export(first, tmp_path / f"net{FORMATS[name].suffix}", name)
    except ExportError as error:
        pytest.skip(str(error))
    files = sorted(file.name for file in tmp_path.iterdir())
    assert len(files) == 1 + len(FORMATS[name].files)
    assert exported_files(first, tmp_path) == (files, [])
    assert exported_files(second, tmp_path) == ((files, []) if FORMATS[name].suffix in NAMELESS else ([], files))
