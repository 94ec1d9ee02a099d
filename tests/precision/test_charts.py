"""Charts are written, and the same search draws the same chart."""

from __future__ import annotations

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
