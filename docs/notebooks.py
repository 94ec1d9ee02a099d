"""The tutorials as Jupyter notebooks: `python docs/notebooks.py` writes notebooks/*.ipynb from docs/tutorials/*.md."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DOCS = Path(__file__).parent
NOTEBOOKS = DOCS.parent / "notebooks"
TUTORIALS = ("classifier", "own_network", "two_bits")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]+\)")


def notebook(name: str) -> nbformat.NotebookNode:
    """A tutorial as a notebook: text, Python and commands, each a cell."""
    text = (DOCS / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    cells, at = [], 0
    for fence in _FENCE.finditer(text):
        cells += _words(text[at : fence.start()])
        cells += _code(*fence.groups())
        at = fence.end()
    cells += _words(text[at:])
    if "digits.py" in text:
        source = (DOCS / "tutorials" / "digits.py").read_text(encoding="utf-8")
        first = next(i for i, cell in enumerate(cells) if cell.cell_type == "code" and cell.source[0] != "%")
        cells.insert(first, new_code_cell(f"%%writefile digits.py\n{source}"))
    for number, cell in enumerate(cells):
        cell["id"] = f"{name}-{number}"  # nbformat's own are random
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


def _words(text: str) -> list[nbformat.NotebookNode]:
    text = _LINK.sub(r"\1", text.strip())  # pages lie elsewhere
    return [new_markdown_cell(text)] if text else []


def _code(language: str, code: str) -> list[nbformat.NotebookNode]:
    if language == "python":
        return [new_code_cell(code.rstrip())]
    if language == "bash":
        return [new_code_cell("\n".join(f"!{line}" for line in code.splitlines()))]
    if code.startswith("pip install"):
        return [new_code_cell(f"%{code.rstrip().replace('pip install', 'pip install -q')}")]
    return [new_markdown_cell(f"```\n{code}```")]


def main() -> None:
    NOTEBOOKS.mkdir(exist_ok=True)
    for name in TUTORIALS:
        nbformat.write(notebook(name), NOTEBOOKS / f"{name}.ipynb")


if __name__ == "__main__":
    main()
