"""From a lowered model to the bytes of a file that ONNX's own checker passes."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from brecq.errors import ConfigError, ExportError

BATCH = "batch"
"""What dimension 0 of inputs and outputs is called."""


def check_batch(batch: int | None) -> None:
    """Raise `ConfigError` unless `batch` can be the size of dimension 0; `None` leaves it dynamic."""
    if batch is not None and batch < 1:
        raise ConfigError(f"batch is {batch}; give at least 1, or leave it out for any batch size")


def set_batch(graph: ir.Graph, batch: int) -> None:
    """Give the batch its size, wherever inputs and outputs have it in front."""
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None and len(value.shape) and str(value.shape[0]) == BATCH:
            value.shape = ir.Shape([batch, *list(value.shape)[1:]])


def valid(model: ir.Model) -> onnx.ModelProto:
    """The model as ONNX's checker passes it.

    Raises:
        ExportError: it does not: a defect of brecq's, better known now than in a runtime.
    """
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ExportError(f"the ONNX graph is not valid: {error}; please report it") from error
    return proto
