"""The C of each operator: a call of CMSIS-NN, or of a small function of the file's own where it has none."""

from __future__ import annotations

from collections.abc import Callable

from brecq.deploy.cmsis.emit import arithmetic, layers, movement
from brecq.deploy.cmsis.emit.source import Source, identifier
from brecq.deploy.lite.program import Operator
from brecq.errors import ExportError

__all__ = ["EMITTERS", "Source", "emit", "identifier"]

Emitter = Callable[[Source, Operator], None]

EMITTERS: dict[str, Emitter] = {
    "CONV_2D": layers.convolution,
    "DEPTHWISE_CONV_2D": layers.convolution,
    "FULLY_CONNECTED": layers.convolution,
    "TRANSPOSE_CONV": layers.transposed,
    "MAX_POOL_2D": arithmetic.pool,
    "PAD": movement.pad,
    "PADV2": movement.pad,
    "ADD": arithmetic.add,
    "MUL": arithmetic.multiply,
    "MEAN": arithmetic.mean,
    "QUANTIZE": arithmetic.requantize,
    "MAXIMUM": arithmetic.bound,
    "MINIMUM": arithmetic.bound,
    "LOOKUP": arithmetic.look_up,
    "CONCATENATION": movement.concatenate,
    "TRANSPOSE": movement.transpose,
    "SLICE": movement.slice_,
    "STRIDED_SLICE": movement.slice_,
    "TILE": movement.tile,
    "REVERSE_V2": movement.flip,
    "RESIZE_NEAREST_NEIGHBOR": movement.resize,
    "RESHAPE": movement.reshape,
}
"""What writes the C of an operator, by its name in the schema of LiteRT."""


def emit(source: Source, operator: Operator) -> None:
    """Write the C of an operator.

    Raises:
        ExportError: there is none.
    """
    if operator.kind not in EMITTERS:
        raise ExportError(
            f"CMSIS-NN: {operator.kind} in {operator.layer or operator.outputs[0].name} has no integer form here; "
            "export to tflite, ONNX or OpenVINO"
        )
    source.lines.append(f"    /* {operator.kind}{f', {operator.layer}' if operator.layer else ''} */")
    EMITTERS[operator.kind](source, operator)
