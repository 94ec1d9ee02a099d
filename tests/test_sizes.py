"""No constructor takes more than six arguments, and no function is longer than a screen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "brecq"
MOST_ARGUMENTS, MOST_LINES = 6, 60


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield f"{file.relative_to(SOURCE)}:{node.lineno} {node.name}", node


def test_constructors_take_few_arguments() -> None:
    """Dataclasses, plain records, have no written constructor."""
    found = {
        place
        for place, node in functions()
        if node.name == "__init__" and len(node.args.args) - 1 + len(node.args.kwonlyargs) > MOST_ARGUMENTS
    }
    assert not found


def test_functions_fit_on_a_screen() -> None:
    """Beside their documentation."""
    found = set()
    for place, node in functions():
        documented = len((ast.get_docstring(node) or "").splitlines())
        if (node.end_lineno or 0) - node.lineno - documented >= MOST_LINES:
            found.add(place)
    assert not found
