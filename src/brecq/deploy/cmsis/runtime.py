"""Exported C, compiled for this machine: with CMSIS-NN's own sources, or a plain C reference of what it documents.

The environment variable `CMSIS_NN` names a checkout of CMSIS-NN. Without it the kernels are those of `reference/`,
which compute what CMSIS-NN's documentation says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from brecq.errors import ConfigError, ExportError, first_line

REFERENCE = Path(__file__).parent / "reference"
FLAGS = ("-std=c11", "-O1", "-w")
_OTHERS = re.compile(r"_f16|_f32|lstm|svdf")
"""Sources of CMSIS-NN that no exported network needs."""


class Program:
    """A compiled network. Inputs and outputs are as the network has them, [N, C, H, W].

    Raises:
        ExportError: there is no C compiler, the folder is no exported network, or it does not compile.
    """

    timed = False

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise ExportError("there is no C compiler to run the exported C with; install gcc")
        headers = [file for file in sorted(folder.glob("*.h")) if (folder / f"{file.stem}.c").exists()]
        if len(headers) != 1 or not (folder / "main.c").exists():
            raise ExportError(f"{folder} holds no network; give a folder that brecq export --format cmsis-nn wrote")
        text = headers[0].read_text(encoding="utf-8")
        self.digest: str | None = _facts(text).get("digest")
        self.shapes = {kind: _shapes(text, kind) for kind in ("input", "output")}
        include, sources, what = kernels()
        self.name = f"C compiled here, {what}"
        self._folder = TemporaryDirectory(prefix="brecq-")
        self._program = Path(self._folder.name) / "run"
        files = [*sorted(folder.glob("*.c")), *sources]
        command = [compiler, *FLAGS, f"-I{include}", *map(str, files), "-lm", "-o", str(self._program)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ExportError(f"the C in {folder} does not compile: {first_line(RuntimeError(done.stderr))}")

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        if len(inputs) != len(self.shapes["input"]):
            raise ConfigError(f"the network takes {len(self.shapes['input'])} inputs, got {len(inputs)}")
        samples = range(len(inputs[0]))
        given = b"".join(_memory(value[i : i + 1]) for i in samples for value in inputs)
        done = subprocess.run([str(self._program)], input=given, capture_output=True, check=False)
        numbers = np.frombuffer(done.stdout, np.float32).copy()
        sizes = [int(np.prod(shape)) for shape in self.shapes["output"]]
        if done.returncode or numbers.size != len(samples) * sum(sizes):
            raise ExportError(f"the compiled network stopped with status {done.returncode}; export it again")
        rows = np.split(numbers.reshape(len(samples), -1), np.cumsum(sizes)[:-1], axis=1)
        shapes = self.shapes["output"]
        return [_channels_first(row.reshape(-1, *shape[1:])) for row, shape in zip(rows, shapes, strict=True)]

    def kernels(self) -> None:
        """None: all are integer kernels, as there are no others."""


def kernels() -> tuple[Path, list[Path], str]:
    """The folder of headers, the sources, and what they are."""
    checkout = os.environ.get("CMSIS_NN")
    if checkout is None:
        return REFERENCE, [REFERENCE / "reference.c"], "with a reference of CMSIS-NN's documented kernels"
    sources = [file for file in sorted(Path(checkout).glob("Source/*/*.c")) if not _OTHERS.search(file.name)]
    if not sources:
        raise ConfigError(f"CMSIS_NN is {checkout!r}, which holds no Source/*/*.c; name a checkout of CMSIS-NN")
    return Path(checkout) / "Include", sources, "with CMSIS-NN's sources"


def load(path: Path, threads: int = 1) -> Program:
    """An exported folder, compiled for this machine."""
    return Program(path)


def _facts(header: str) -> dict[str, str]:
    found = re.match(r"/\* (\{.*\}) \*/", header)
    facts: dict[str, str] = json.loads(found[1]) if found else {}
    return facts


def _shapes(header: str, kind: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, shape.split("x"))) for shape in re.findall(rf"/\* {kind} \d+: ([\dx]+);", header)]


def _memory(value: np.ndarray) -> bytes:
    ordered = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
    return np.ascontiguousarray(ordered, np.float32).tobytes()


def _channels_first(value: np.ndarray) -> np.ndarray:
    return value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
