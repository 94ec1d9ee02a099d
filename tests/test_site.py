"""The documentation: the site builds without a warning, and no link of it or of the repository's pages is broken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "mkdocs.yml").is_file():
    pytest.skip("docs/ is not part of the source distribution", allow_module_level=True)
for package in ("material", "mkdocstrings_handlers.python"):
    pytest.importorskip(package)
WRITTEN = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"]
GENERATED = {ROOT / "docs" / "reference" / "cli.md"}  # made by docs/hooks.py
ADDRESS = re.compile(r"^[a-z]+:|^//")


class Links(HTMLParser):
    """Of a page: `ids` that can be linked to, `targets` of its links, pictures, styles and scripts."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value and not ADDRESS.match(value):
                self.targets.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_no_broken_link(site: Path) -> None:
    pages = {page: Links(page) for page in site.glob("**/*.html")}
    assert len(pages) > 20
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            base = site if parts.path.startswith("/") else page.parent
            at = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else page
            at = at / "index.html" if at.is_dir() else at
            known = pages[at].ids if at in pages else set()
            if not at.is_file() or (parts.fragment and at in pages and unquote(parts.fragment) not in known):
                broken.append(f"{page.relative_to(site)}: {target}")
    assert not broken


def test_nothing_of_the_site_is_loaded_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"<(?:link|script|img|iframe)\b[^>]*?(?:href|src)=\"?(?:https?:)?//[^\s\">]+")
    found = {load for page in site.glob("**/*.html") for load in loads.findall(page.read_text(encoding="utf-8"))}
    assert not {load for load in found if "canonical" not in load}
    architecture = (site / "architecture" / "index.html").read_text(encoding="utf-8")
    assert 'class="mermaid"' not in architecture  # drawn by a script that is fetched
    assert architecture.count("<line ") > 20


def test_nothing_of_a_page_is_cut_off(site: Path, browser: str) -> None:
    """On a screen of 1280 pixels no table and no code is wider than its place: that it scrolls is not seen."""
    program = pytest.importorskip("playwright.sync_api").sync_playwright()
    wider = """[...document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")]
      .filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.innerText.slice(0, 60))"""
    found = {}
    with program as started:
        chromium = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 1280, "height": 900})
        for page in sorted(site.glob("**/*.html")):
            tab.goto(page.as_uri())
            found[str(page.relative_to(site))] = tab.evaluate(wider)
        chromium.close()
    assert {page: texts for page, texts in found.items() if texts} == {}


def links_of(text: str) -> Iterator[str]:
    """Targets of a Markdown page's links and pictures, its code left out."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def anchors_of(page: Path) -> set[str]:
    """Anchors of a Markdown page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"`", "", each).strip().lower()).replace(" ", "-") for each in headings}


def test_links_between_files_hold() -> None:
    broken = []
    for page in WRITTEN:
        for target in links_of(page.read_text(encoding="utf-8")):
            if ADDRESS.match(target):
                continue
            path, _, anchor = target.partition("#")
            at = (page.parent / path).resolve() if path else page
            if at in GENERATED:
                continue
            if not at.exists() or (anchor and anchor not in anchors_of(at)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_addresses_of_the_web_are_whole() -> None:
    """Nothing is fetched: that they are written as addresses are, and lead nowhere local."""
    for page in [*WRITTEN, ROOT / "CITATION.cff", *ROOT.glob("src/brecq/**/*.j2"), *ROOT.glob("src/brecq/**/*.toml")]:
        for address in re.findall(r"https?://[^\s)\"'>`]+", page.read_text(encoding="utf-8")):
            parts = urlsplit(address)
            assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), f"{page}: {address}"
            assert parts.scheme == "https" or parts.netloc == "www.w3.org", f"{page}: {address}"


def test_a_broken_link_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`: c\n[x](y.md#z) `[no](link)`\n```\n[no](link)\n```\n![p](q.png)\n")
    assert list(links_of(page.read_text())) == ["y.md#z", "q.png"]
    assert anchors_of(page) == {"a-b-c"}
    (tmp_path / "page.html").write_text('<a href="a.html#b" id=c><img src="d.png"><a href="https://e">')
    found = Links(tmp_path / "page.html")
    assert (found.targets, found.ids) == (["a.html#b", "d.png"], {"c"})
