"""Files around the code that must agree with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from brecq.cli import app
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


def test_the_skill_file_names_commands_and_options_that_exist() -> None:
    text = (ROOT / "src" / "brecq" / "SKILL.md").read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    known = {flag for command in group.commands.values() for option in command.params for flag in option.opts}
    named = set(re.findall(r"`brecq (\w+)", text))
    assert named >= {"doctor", "inspect", "quantize", "export", "verify", "benchmark"}
    assert named <= group.commands.keys() | {"brecq"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known
