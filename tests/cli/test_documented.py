"""Every command in the documentation is one, with options that it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from brecq.cli import app

ROOT = Path(__file__).parents[2]
if not (ROOT / "docs").is_dir():
    pytest.skip("docs/ is not part of the source distribution", allow_module_level=True)
PAGES = [ROOT / "README.md", ROOT / "src" / "brecq" / "SKILL.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<!\S)(--?[a-zA-Z][\w-]*)")


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Name and arguments of each command in the page's blocks and between backticks, comments left out."""
    text = page.read_text(encoding="utf-8")
    blocks = (line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines())
    for written in (*blocks, *re.findall(r"`([^`\n]+)`", text)):
        if found := re.match(r"(?:\w+=\S+ )*brecq ([a-z]\S*)(.*)", written.partition("  #")[0]):
            yield found[1], found[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_exist(page: Path) -> None:
    known = {
        name: {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
    }
    for name, arguments in commands(page):
        assert name in known, f"brecq {name}{arguments}"
        unknown = set(OPTION.findall(arguments)) - known[name] - {"--help"}
        assert not unknown, f"brecq {name}{arguments}"


def test_commands_are_found() -> None:
    found = list(commands(ROOT / "README.md"))
    assert len(found) > 15
    assert ("quantize", " timm:resnet18 --calib PHOTOS --eval LABELED -w 4 -a 8 -o out/") in found
