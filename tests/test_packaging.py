"""Files around the code that must agree with it."""

from __future__ import annotations

import re
from pathlib import Path

from brecq.version import __version__

ROOT = Path(__file__).resolve().parents[1]


def test_the_citation_names_this_version() -> None:
    found = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == __version__


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "src" / "brecq" / "py.typed").exists()
