"""Fixtures of the command line's tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from brecq.cli import app

NETWORK = """
import torch
from torch import nn

from brecq.data.preprocessing import Preprocessing


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.bn1(self.conv1(x)))))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Sequential(Residual(8), Residual(8))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.body(torch.relu(self.stem(x))).mean((2, 3)))


def build():
    torch.manual_seed(7)
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=(16, 16), resize=16)
    return Network().eval(), preprocessing


def plain():
    torch.manual_seed(7)
    network = Network().eval()
    network.example_inputs = (torch.rand(2, 3, 16, 16),)
    return network
"""


@pytest.fixture(scope="session")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python file with a small residual network: `build` (with preprocessing) and `plain` (without)."""
    path = tmp_path_factory.mktemp("network") / "network.py"
    path.write_text(NETWORK)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 smooth random pictures of 20×24."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(24):
        coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A CSV of labels for `images`."""
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    rows = [f"{file.name},{index % 10}" for index, file in enumerate(sorted(images.iterdir()))]
    path.write_text("\n".join(["file,label", *rows]) + "\n")
    return path


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line with these arguments, at 100 columns and without colors."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("BRECQ_DEBUG", raising=False)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


def squeeze(text: str) -> str:
    """`text` with every run of white space as one blank."""
    return re.sub(r"\s+", " ", text)
