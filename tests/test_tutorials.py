"""Every block of the tutorials runs, in order, in a folder of its own; commands run in this process."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from brecq.cli import app

PAGES = Path(__file__).parents[1] / "docs" / "tutorials"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytest.importorskip("timm")
pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")

NEEDS = {"phone": "ai_edge_litert", "fpga": "qonnx"}
"""What single pages need besides."""

TRAINED: list[bytes] = []
"""The weights of digits.py, once a page has trained them."""


def run_page(page: Path, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Execute a page; what its Python blocks defined."""
    names = {"__name__": "__main__"} if names is None else names
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(block, str(page), "exec"), names)  # our own documentation
            continue
        for line in block.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True) or ["brecq", "--help"]
            assert program == "brecq", line
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, f"{line}\n{done.output}"
    return names


@pytest.mark.tutorials
@pytest.mark.parametrize("name", sorted(page.stem for page in PAGES.glob("*.md")))
def test_a_tutorial(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for file in PAGES.glob("*.py"):
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
        shutil.copy(file, tmp_path)
    weights = tmp_path / "digits.safetensors"
    if TRAINED:
        weights.write_bytes(TRAINED[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_page(PAGES / f"{name}.md")
        if weights.exists():
            TRAINED[:] = [weights.read_bytes()]
    finally:
        torch.set_num_threads(threads)


def test_notebooks_are_those_of_the_tutorials() -> None:
    nbformat = pytest.importorskip("nbformat")
    maker = runpy.run_path(str(PAGES.parent / "notebooks.py"))
    assert {file.stem for file in maker["NOTEBOOKS"].glob("*.ipynb")} == set(maker["TUTORIALS"])
    for name in maker["TUTORIALS"]:
        written = nbformat.read(maker["NOTEBOOKS"] / f"{name}.ipynb", as_version=4)
        assert written.cells == maker["notebook"](name).cells, "run python docs/notebooks.py"


@pytest.mark.tutorials
def test_a_notebook_runs(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    made = runpy.run_path(str(PAGES.parent / "notebooks.py"))["notebook"]("own_network")
    made.cells = [cell for cell in made.cells if not cell.source.startswith("%pip")]
    nbclient.NotebookClient(made, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any("float: 9" in output.get("text", "") for cell in made.cells for output in cell.get("outputs", []))
