"""Files around the code that must agree with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from brecq.version import __version__

ROOT = Path(__file__).resolve().parents[1]


def test_the_citation_names_this_version() -> None:
    found = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == __version__


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "src" / "brecq" / "py.typed").exists()


@pytest.mark.parametrize("document", ["AGENTS.md", "docs/architecture.md", "docs/pipeline.md", "docs/releasing.md"])
def test_files_that_documents_name_exist(document: str) -> None:
    named = re.findall(r"`([\w./-]+(?:\.(?:py|md|toml|cff)|/))`", (ROOT / document).read_text())
    assert named
    places = [ROOT, *(ROOT / name for name in ("src", "tests", "docs", "benchmarks"))]
    paths = {f"/{path.relative_to(ROOT)}" for place in places for path in place.glob("**/*" if place != ROOT else "*")}
    assert not [name for name in named if not any(path.endswith(f"/{name.rstrip('/')}") for path in paths)]
