"""The format `tensorrt`: ONNX with explicit quantization, for trtexec and TensorRT's parser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from brecq.checkpoint.tensors import PackedWeight, collect_tensors
from brecq.converted.grids import grid_of
from brecq.converted.layers import quantized_activations
from brecq.deploy.complete import added_note, complete
from brecq.deploy.formats import Exported, some
from brecq.deploy.onnx.file import check_batch, set_batch, valid
from brecq.deploy.onnx.neutral import neutral
from brecq.deploy.onnx.write import describe
from brecq.deploy.tensorrt.lint import lint
from brecq.deploy.tensorrt.lower import INT4_OPSET, lower
from brecq.errors import ExportError
from brecq.storage.files import write as write_file

if TYPE_CHECKING:
    from brecq.result import QuantResult

REMEDY = "quantize with --target tensorrt"


def write(result: QuantResult, path: Path, *, batch: int | None = None) -> Exported:
    """Write a result as an ONNX file with explicit Q/DQ pairs, INT8, all zero points 0.

    Args:
        batch: the size of dimension 0 of inputs and outputs; dynamic if none is given.

    Raises:
        ConfigError: `batch` is below 1. ExportError: as `brecq.export`; also for zero points, and activations of
            other than 8 bits.
    """
    check_batch(batch)
    _check(result)
    completed = complete(result, fold_clamps=False)
    model = neutral(completed)
    opset = lower(model)
    describe(model, result, completed, "tensorrt")
    if batch is not None:
        set_batch(model.graph, batch)
    proto = valid(model)
    findings = lint(proto)
    if findings:
        raise ExportError(f"the file would break rules of TensorRT: {some(findings)}; {REMEDY}")
    write_file(path, proto.SerializeToString(), ExportError)
    needs = "TensorRT 10 or newer (INT4 weights)" if opset == INT4_OPSET else "TensorRT 8.6 or newer"
    shapes = "" if batch is not None else "; trtexec takes --minShapes, --optShapes and --maxShapes for the batch"
    notes = (f"opset {opset}: {needs}{shapes}", "checked against the rules of its documentation, not run in TensorRT")
    return Exported(path, (path,), path.stat().st_size, (*notes, *added_note(completed, "tensorrt")))


def _check(result: QuantResult) -> None:
    """Raise `ExportError` for grids that TensorRT does not have."""
    tensors = collect_tensors(result.converted)  # type: ignore[arg-type]
    packed = {name: value for name, value in tensors.items() if isinstance(value, PackedWeight)}
    shifted = [name for name, value in packed.items() if value.zero_point.any()]
    grids = [grid_of(node) for node in quantized_activations(result.converted)]  # type: ignore[arg-type]
    problems, options = [], []
    if shifted:
        problems.append(f"{some(shifted)} have zero points, TensorRT has none")
        options.append("--weight-scheme symmetric")
    if any(grid.zero_point or not grid.whole or grid.low == 0 for grid in grids):
        problems.append("TensorRT takes 8-bit signed activations with zero point 0")
        options.append("--activation-scheme signed --activation-bits 8")
    if problems:
        raise ExportError(f"{'; '.join(problems)}; {REMEDY} or {' '.join(options)}")
