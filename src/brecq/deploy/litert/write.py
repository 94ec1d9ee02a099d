"""The format `tflite`: int8 or int16 activations, weights of 8 or 4 bits, float operators where it has no others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import GraphModule

from brecq.checkpoint.tensors import PackedWeight, collect_tensors
from brecq.converted.grids import grid_of
from brecq.deploy.complete import Completed, added_note, complete, require_activations
from brecq.deploy.formats import Exported, some
from brecq.deploy.lite.lower import lower
from brecq.deploy.lite.program import Operator, Program
from brecq.deploy.litert.flatbuffer import serialize
from brecq.deploy.litert.runtime import LITERT, METADATA, Session
from brecq.deploy.samples import fixed
from brecq.deploy.simulate.kernels import fits_int4
from brecq.errors import ExportError
from brecq.storage.files import write as write_file
from brecq.version import __version__

if TYPE_CHECKING:
    from brecq.result import QuantResult

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def write(result: QuantResult, path: Path, *, batch: int | None = None) -> Exported:
    """Write a result as a `.tflite` file. Pictures go in and come out as [N, H, W, C], in float32.

    Args:
        batch: the batch size of the file, which is fixed: 1 by default, where samples do not know of each other.

    Raises:
        ConfigError: `batch` is below 1. ExportError: as `brecq.export`; also for results with float activations, for
            asymmetric 8-bit weights, for operators that LiteRT has no form of, and where the samples of a batch are
            mixed and no `batch` says of how many.
    """
    require_activations(result, "LiteRT's integer kernels need quantized activations", "ONNX or OpenVINO")
    completed = complete(result, linear_outputs=True)
    check_wide(completed)
    size, mixed = fixed(completed, batch, "LiteRT")
    program = lower(completed, size, LITERT)
    content = serialize(program, f"brecq {__version__}", {METADATA: facts(result, program)})
    Session(content)  # a file that does not load is not written
    write_file(path, content, ExportError)
    found = (*notes(program, widened(result)), *mixed, *added_note(completed, "litert"))
    return Exported(path, (path,), path.stat().st_size, found)


def check_wide(completed: Completed) -> None:
    """Raise `ExportError` for 16-bit activations other than the runtime's: all of them, with zero points 0."""
    grids = [grid_of(node) for node in completed.quantizers().values()]
    wide = [grid.dtype is torch.int16 for grid in grids]
    if any(wide) and not (all(wide) and all(grid.zero_point == 0 for grid in grids)):
        raise ExportError(
            "LiteRT takes 16-bit activations with zero points 0, and no others beside them; quantize with "
            "--target litert"
        )


def facts(result: QuantResult, program: Program) -> bytes:
    """What the file says of itself: its result, and where the codes of quantizers are: [tensor, offset, layout]."""
    index = {tensor: number for number, tensor in enumerate(program.tensors())}
    codes = {
        name: [index[each.tensor], each.offset, "".join(map(str, each.layout))]
        for name, each in program.codes.items()
        if each.tensor in index
    }
    return json.dumps(
        {
            "version": __version__,
            "digest": result.digest(),
            "preprocessing": result.metadata.get("preprocessing"),
            "codes": codes,
        },
        separators=(",", ":"),
    ).encode()


def widened(result: QuantResult) -> list[str]:
    """Weights of at most four bits that four bits do not hold without their zero points."""
    assert isinstance(result.converted, GraphModule)
    stored = collect_tensors(result.converted).items()
    packed = [(name, each) for name, each in stored if isinstance(each, PackedWeight) and each.bits <= 4]
    return [name for name, each in packed if not fits_int4(_integers(each))]


def _integers(weight: PackedWeight) -> Tensor:
    shape = [-1 if axis == weight.axis else 1 for axis in range(len(weight.shape))]
    return weight.codes().to(torch.int32) - weight.zero_point.reshape(shape)


def notes(program: Program, widened: Sequence[str] = ()) -> tuple[str, ...]:
    """What a user should know about the file."""
    widths: Counter[str] = Counter()
    layers: list[str] = []
    for operator in program.operators:
        weight = operator.inputs[1] if operator.kind in LAYERS else None
        if weight is not None:
            widths[weight.dtype] += 1
            layers += [operator.layer or weight.name] if weight.dtype == "float32" else []
    stored = [f"{widths[key]} layers at {bits} bits" for key, bits in (("int4", 4), ("int8", 8)) if widths[key]]
    stored += [f"{len(layers)} in float ({some(layers)})"] if layers else []
    floats = sorted({each.kind for each in program.operators if _is_float(each)})
    found = [", ".join(stored)] if stored else []
    if any(tensor.dtype == "int16" for tensor in program.tensors()):
        found.append("activations have 16 bits")
    if widened:
        found.append(
            f"{some(widened)} take 8 bits: asymmetric, their codes minus zero points exceed four; quantize with "
            "--weight-scheme symmetric"
        )
    if any(len(tensor.shape) == 4 for tensor in program.inputs):
        found.append("pictures go in as [N, H, W, C]")
    if floats:
        found.append(f"computed in float: {', '.join(floats)}")
    return tuple(found)


def _is_float(operator: Operator) -> bool:
    moved = {"DEQUANTIZE", "QUANTIZE", "RESHAPE", "TRANSPOSE"}
    return operator.kind not in moved and operator.outputs[0].dtype == "float32"
