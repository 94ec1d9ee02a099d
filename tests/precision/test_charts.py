"""Charts are written, and the same search draws the same chart."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from PIL import Image

from brecq.precision.charts import plot_bits, plot_front
from brecq.precision.search import pareto


def test_charts(bench, tmp_path: Path) -> None:
    table = bench.table("ResNet", bits=(2, 3, 4, 8), cross="all")
    front = pareto(table, "size", 5)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        plot_bits(front[2], [folder / "bits.png", folder / "bits.svg"])
        plot_front(front, "size", front[2], [folder / "front.svg"])
    with Image.open(tmp_path / "a" / "bits.png") as image:
        assert image.width > 600
    drawn = (tmp_path / "a" / "bits.svg").read_text()
    for layer in front[2].layers:
        assert layer in drawn
    for name in ("bits.svg", "front.svg"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


def test_a_point_that_loses_nothing_is_drawn(bench, tmp_path: Path) -> None:
    front = pareto(bench.table("ResNet", bits=(2, 3, 4, 8)), "size", 5)
    front[-1] = replace(front[-1], loss=0.0)
    plot_front(front, "size", front[-1], [tmp_path / "front.svg"])
    drawn = (tmp_path / "front.svg").read_text()
    assert "<!-- loss exactly 0 -->" in drawn
    marks = re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: #2b6cb0', drawn)
    assert len(marks) == len(front) + 1  # and the one of the legend
