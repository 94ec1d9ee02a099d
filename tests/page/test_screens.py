"""Pages in a browser, on a desk and on a phone, light and dark: nothing is wrong, fetched or sticks out.

`BRECQ_SCREENS=DIR` keeps the pictures to look at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import brecq
from brecq.page import pictures
from brecq.page.compare import compare_page
from brecq.page.facts import gather
from brecq.page.record import Record, Row
from brecq.page.render import page
from brecq.page.search import search_page

VIEWS = {"desk": (1280, 900), "phone": (390, 844)}
OUTSIDE = """[...document.querySelectorAll("main *, header *, nav *")].filter(each => {
  const box = each.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !each.closest(".scroll, svg, pre");
}).map(each => each.tagName + "." + each.className)"""


@dataclass
class Screen:
    """A page in a browser. `wrong`: what its console complained of, and whatever it asked the network for."""

    tab: Any
    folder: Path
    wrong: list[str] = field(default_factory=list)

    def check(self, name: str) -> None:
        """On every screen nothing is wrong with it, and nothing sticks out to the right; pictures are taken."""
        for view, (width, height) in VIEWS.items():
            self.tab.set_viewport_size({"width": width, "height": height})
            scrolled = self.tab.evaluate("document.documentElement.scrollWidth")
            assert scrolled <= width, f"{scrolled} pixels wide on a screen of {width}"
            assert self.tab.evaluate(OUTSIDE) == []
            taken = set()
            for scheme in ("light", "dark"):
                self.tab.emulate_media(color_scheme=scheme)
                taken.add(self.tab.screenshot(path=self.folder / f"{name}-{view}-{scheme}.png", full_page=True))
            assert len(taken) == 2
        assert self.wrong == []


@pytest.fixture(scope="module")
def chromium(browser: str) -> Iterator[Any]:
    """Chromium, started once."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as program:
        started = program.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def screen(chromium: Any, tmp_path: Path) -> Iterator[Callable[[str], Screen]]:
    """`screen(text)`: the page in the browser."""
    tab = chromium.new_page(viewport=dict(zip(("width", "height"), VIEWS["desk"], strict=True)))
    folder = Path(os.environ.get("BRECQ_SCREENS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def show(text: str) -> Screen:
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        shown = Screen(tab, folder)
        tab.on("console", lambda message: shown.wrong.append(message.text))
        tab.on("pageerror", lambda error: shown.wrong.append(str(error)))
        tab.on("request", lambda each: each.url.startswith(("file:", "data:")) or shown.wrong.append(each.url))
        tab.goto(file.as_uri())
        return shown

    yield show
    tab.close()


@pytest.fixture(scope="module")
def quantized(networks: ModuleType) -> tuple[brecq.QuantResult, Record]:
    """A small network, and a record with pictures of it."""
    torch.manual_seed(0)
    model = networks.build(networks.MobileNet)
    data = torch.randn(16, *networks.inputs(model)[0].shape[1:])
    result = brecq.quantize(model, data, brecq.QuantConfig(weights=4, activations=4, method="rtn"))
    shown = pictures.thumbnails(data, brecq.data.Preprocessing.imagenet(data.shape[-1]))
    rows = [
        Row("float", {"top-1 %": 80.0, "top-5 %": 95.0}, 100_000),
        Row("reconstructed", {"top-1 %": 75.0}, 9_000, 3.0),
    ]
    return result, Record("brecq quantize timm:mobilenetv2_100 --calib photos -w 4 -a 4 -o out/", rows, 64, shown)


def test_report(
    quantized: tuple[brecq.QuantResult, Record],
    screen: Callable[[str], Screen],
) -> None:
    result, record = quantized
    shown = screen(page(result, record))
    layer = gather(result).layers[1]
    shown.tab.locator(".cell").nth(1).click()
    details = shown.tab.locator("#details").inner_text()
    assert layer.name in details
    assert f"{layer.parameters:,}" in details
    assert layer.sqnr is not None
    assert f"{layer.sqnr:.1f} dB" in details
    shown.tab.locator("[value=bits]").click()
    assert shown.tab.locator(".cell").first.get_attribute("data-level") == "3"  # eight bits: the first layer
    shown.tab.locator("[value=sqnr]").click()
    shown.check("report")


def test_report_of_a_detector(screen: Callable[[str], Screen], detector: tuple[Any, Record]) -> None:
    result, record = detector
    shown = screen(page(result, record))
    boxes = shown.tab.locator(".boxes rect.quantized")
    assert boxes.count() == sum(len(each.quantized) for each in record.detected) > 0
    shape = shown.tab.evaluate(
        """() => {
          const inside = document.querySelector(".boxes rect.float").getBoundingClientRect();
          const picture = document.querySelector(".boxes image").getBoundingClientRect();
          return [inside.x - picture.x, inside.width].map(each => each / picture.width);
        }"""
    )
    x1, _, x2, *_ = record.detected[0].floating[0]
    width = record.detected[0].width
    assert shape == pytest.approx([x1 / width, (x2 - x1) / width], abs=0.02)
    shown.check("report-of-a-detector")


@pytest.fixture(scope="module")
def detector() -> tuple[brecq.QuantResult, Record]:
    """A detector whose boxes are the brightest quarters of its pictures."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)).eval()
    data = torch.rand(8, 3, 64, 64)
    result = brecq.quantize(model, data, brecq.QuantConfig(weights=4, activations=4, method="rtn", first_last=None))

    def boxes(outputs: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        best = outputs.flatten(1).argmax(1) % outputs.shape[-1] * 2
        corners = [torch.tensor([[float(x), 8.0, float(x) + 30, 50.0]]) for x in best]
        return [{"boxes": each, "scores": torch.tensor([0.9]), "labels": torch.tensor([3])} for each in corners]

    preprocessing = brecq.data.Preprocessing((0.0,), (1.0,), (64, 64), None)
    drawn = pictures.detections(
        model, result.model, brecq.data.Dataset((data,)), boxes, 0.3, preprocessing, torch.device("cpu")
    )
    return result, Record("brecq quantize detector.py:build", [Row("float", {"AP %": 30.0})], 8, detected=drawn)


def test_search(screen: Callable[[str], Screen], searched: tuple[str, list[brecq.BitAllocation]]) -> None:
    text, front = searched
    shown = screen(text)
    shown.tab.locator(".point[data-point='2']").click()
    expected = [" / ".join("float" if b > 8 else str(b) for b in bits) for bits in front[1].layers.values()]
    assert shown.tab.locator(".bits").all_inner_texts() == expected
    assert shown.tab.locator("#p2").is_checked()
    shown.check("search")


@pytest.fixture(scope="module")
def searched(sensitivities: brecq.SensitivityTable) -> tuple[str, list[brecq.BitAllocation]]:
    """The page of a search, and its front."""
    table = sensitivities
    front = brecq.pareto(table, "size", 6)
    chosen = brecq.search(table, f"size={front[3].costs['size']:.0f}B")
    return search_page(table, chosen, [("2 bits", front[0])], front, "size", "fisher"), front


def test_comparison(
    quantized: tuple[brecq.QuantResult, Record],
    screen: Callable[[str], Screen],
) -> None:
    result, record = quantized
    shown = screen(compare_page([("a-long-folder-name/w8a8", result, record), ("w4a4", result, record)]))
    assert shown.tab.locator("#layers tbody tr").count() == len(gather(result).layers)
    shown.check("comparison")
