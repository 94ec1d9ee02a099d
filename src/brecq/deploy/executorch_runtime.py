"""ExecuTorch's own runtime for Python: loading a `.pte` program and running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import executorch.kernels.quantized  # noqa: F401 (registers the kernels that programs may need)
import numpy as np
import torch
from executorch.runtime import Runtime, Verification

from brecq.deploy.runtime import Kernels, run_in_batches
from brecq.errors import ExportError


class Session:
    """A `.pte` program; inputs of any number of samples run in batches of the size that the program has.

    Args:
        source: the path of a file, or its bytes.

    Raises:
        ExportError: the runtime does not load the program.
    """

    name = "ExecuTorch with XNNPACK"
    digest = None  # a program has no place for it

    def __init__(self, source: Path | bytes) -> None:
        try:
            given: Any = str(source) if isinstance(source, Path) else source
            self._program = Runtime.get().load_program(given, verification=Verification.Minimal)
            self._method: Any = self._program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"ExecuTorch does not load the program: {error}") from error
        self.batch = int(self._method.metadata.input_tensor_meta(0).sizes()[0])

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        def run(values: list[np.ndarray]) -> list[np.ndarray]:
            found = self._method.execute([torch.from_numpy(np.ascontiguousarray(value)) for value in values])
            return [output.numpy().copy() for output in found]

        return run_in_batches(run, inputs, self.batch)

    def kernels(self) -> Kernels | None:
        """`None`: the runtime does not tell."""
        return None


def load(path: Path, threads: int = 1) -> Session:
    """An exported program in ExecuTorch, which decides on threads by itself."""
    return Session(path)
