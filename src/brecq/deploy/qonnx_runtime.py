"""QONNX files executed by the qonnx package, node after node: what they say, not what hardware makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from brecq.deploy.formats import needs
from brecq.deploy.runtime import run_in_batches
from brecq.errors import ConfigError, ExportError, first_line


class Session:
    """A QONNX file. Inputs of any number of samples run in batches of the size that the file has.

    Raises:
        ExportError: qonnx is not installed, or does not read the file.
    """

    name = "qonnx"
    timed = False

    def __init__(self, path: Path) -> None:
        with needs("qonnx", "running QONNX files"):
            from qonnx.core.modelwrapper import ModelWrapper
            from qonnx.util.cleanup import cleanup_model
        try:
            self._model: Any = cleanup_model(ModelWrapper(str(path)))
        except Exception as error:  # of many types
            raise ExportError(f"qonnx does not read {path}: {first_line(error)}; export it again") from error
        graph = self._model.graph
        constants = {tensor.name for tensor in graph.initializer}
        self.inputs = tuple(value.name for value in graph.input if value.name not in constants)
        self.outputs = tuple(value.name for value in graph.output)
        self.batch = int(graph.input[0].type.tensor_type.shape.dim[0].dim_value)
        facts = {entry.key: entry.value for entry in self._model.model.metadata_props}
        self.digest: str | None = facts.get("brecq.digest")

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        from qonnx.core.onnx_exec import execute_onnx

        if len(inputs) != len(self.inputs):
            raise ConfigError(
                f"the file takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), got {len(inputs)}"
            )

        def run(values: list[np.ndarray]) -> list[np.ndarray]:
            found = execute_onnx(self._model, dict(zip(self.inputs, values, strict=True)))
            return [found[name] for name in self.outputs]

        return run_in_batches(run, inputs, self.batch)

    def kernels(self) -> None:
        """None: the nodes are computed in float."""


def load(path: Path, threads: int = 1) -> Session:
    """An exported file, executed by qonnx."""
    return Session(path)
