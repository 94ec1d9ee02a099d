"""Every block of the tutorials runs, in order, in a folder of its own: as a notebook where there is one."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from brecq.cli import app

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
if not PAGES.is_dir():
    pytest.skip("docs/ is not part of the source distribution", allow_module_level=True)
for package in ("timm", "sklearn", "onnxruntime"):
    pytest.importorskip(package)
nbformat = pytest.importorskip("nbformat")
MAKER = runpy.run_path(str(ROOT / "docs" / "notebooks.py"))
NEEDS = {"phone": "ai_edge_litert", "fpga": "qonnx"}
"""What single pages need besides."""

TRAINED: list[bytes] = []
"""The weights of digits.py, once a page has trained them."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for file in PAGES.glob("*.py"):
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    return tmp_path


@pytest.mark.tutorials
@pytest.mark.parametrize("name", sorted({page.stem for page in PAGES.glob("*.md")} - set(MAKER["TUTORIALS"])))
def test_a_tutorial(name: str, folder: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    for file in PAGES.glob("*.py"):
        shutil.copy(file, folder)
    weights = folder / "digits.safetensors"
    if TRAINED:
        weights.write_bytes(TRAINED[0])
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, block in BLOCK.findall((PAGES / f"{name}.md").read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(block, name, "exec"), names)  # our own documentation
            continue
        for line in block.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True) or ["brecq", "--help"]
            assert program == "brecq", line
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, f"{line}\n{done.output}"


COMMANDS = """
import shlex
from brecq.cli import app
from typer.testing import CliRunner

def command(line):
    done = CliRunner().invoke(app, shlex.split(line))
    assert done.exit_code == 0, done.output
"""


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Settings of a Jupyter kernel that is reached by socket files.

    Over TCP, free ports are looked for first and bound by the kernel later: a busy machine gives them to somebody else
    meanwhile, and the kernel dies.
    """
    config = pytest.importorskip("traitlets.config").Config()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="brecq-") as short:  # the path of a socket has to be
        config.KernelManager.transport = "ipc"
        config.KernelManager.ip = f"{short}/kernel"
        yield config


@pytest.mark.tutorials
@pytest.mark.parametrize("name", MAKER["TUTORIALS"])
def test_a_notebook(name: str, folder: Path, sockets: Any) -> None:
    nbclient = pytest.importorskip("nbclient")
    notebook = MAKER["notebook"](name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and not cell.source.startswith("%pip")]
    for cell in code:  # commands run in the kernel: programs would import PyTorch each time
        cell.source = re.sub(r"^!brecq (.*)$", lambda line: f"command({line[1]!r})", cell.source, flags=re.MULTILINE)
        assert not re.search(r"^!", cell.source, re.MULTILINE)
    notebook.cells = [nbformat.v4.new_code_cell(COMMANDS), *code]
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, config=sockets, timeout=600, resources=resources).execute()
    assert any(cell.outputs for cell in code)


def test_notebooks_are_those_of_the_tutorials() -> None:
    assert {file.stem for file in MAKER["NOTEBOOKS"].glob("*.ipynb")} == set(MAKER["TUTORIALS"])
    for name in MAKER["TUTORIALS"]:
        written = nbformat.read(MAKER["NOTEBOOKS"] / f"{name}.ipynb", as_version=4)
        assert written.cells == MAKER["notebook"](name).cells, "run python docs/notebooks.py"
