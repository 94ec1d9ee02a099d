"""The format `onnx`: packed weights, integer activations, for ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from brecq.deploy.complete import Completed, added_note, complete, float_note
from brecq.deploy.formats import Exported
from brecq.deploy.onnx import weight_only
from brecq.deploy.onnx.file import valid
from brecq.deploy.onnx.lower import lower
from brecq.deploy.onnx.neutral import neutral
from brecq.deploy.onnx.packing import INT2_OPSET, PACKS, Pack, requirements
from brecq.errors import ConfigError, ExportError
from brecq.storage.files import write as write_file
from brecq.version import __version__

if TYPE_CHECKING:
    from brecq.result import QuantResult

LIMIT = 2_000_000_000
"""Bytes that one ONNX file may have (Protocol Buffers end at 2 GiB)."""


def write(result: QuantResult, path: Path, *, pack: Pack = "planes") -> Exported:
    """Write a result as one ONNX file.

    Args:
        pack: how weights below 8 bits are stored: `planes` (opset 18, any bit-width at its true size), `cast` (INT4
            and INT2 initializers, opset 21 or 25), `native` (the same, read by DequantizeLinear: for the toolchains
            of accelerators; with INT2, ONNX Runtime needs a setting, and its CPU kernels are float), or `int8` (plain
            INT8 initializers and constant bias steps, a byte a weight: for readers that fold no constants).

    Raises:
        ConfigError: `pack` is none of these. ExportError: as `brecq.export`.
    """
    if pack not in PACKS:
        raise ConfigError(f"pack is {pack!r}; choose one of {', '.join(PACKS)}")
    if result.weight_bytes() > LIMIT:
        raise ExportError(
            f"the weights take {result.weight_bytes() / 1e9:.1f} GB, an ONNX file holds 2; "
            "quantize to fewer bits, or export parts of the network (submodule=...)"
        )
    completed = complete(result, products=True)
    model = neutral(completed)
    widths = lower(model, pack)
    describe(model, result, completed, pack)
    write_file(path, valid(model).SerializeToString(), ExportError)
    found = (*notes(completed, pack, widths), *weight_only.notes(model.graph))
    return Exported(path, (path,), path.stat().st_size, found)


def describe(model: ir.Model, result: QuantResult, completed: Completed, pack: str) -> None:
    """Say in the file's metadata where it comes from and how its inputs are prepared."""
    model.producer_name, model.producer_version = "brecq", __version__
    model.graph.name = "brecq"
    facts = {
        "brecq.version": __version__,
        "brecq.config": json.dumps(result.config.to_dict()),
        "brecq.digest": result.digest(),
        "brecq.data_digest": result.report.data_digest,
        "brecq.pack": pack,
        "brecq.completed": json.dumps([f"{added.layer or added.tensor} ({added.op})" for added in completed.added]),
        "brecq.preprocessing": json.dumps(result.metadata.get("preprocessing")),
        "brecq.source": json.dumps((result.metadata.get("source") or {}).get("spec")),
    }
    model.metadata_props.clear()
    model.metadata_props.update(facts)
    # The exporter's notes on each node, and types that follow from the inputs', are larger than packed weights.
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.type = value.shape = None
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.type = value.shape = None  # the tensor has both


def notes(completed: Completed, pack: Pack, widths: set[int]) -> tuple[str, ...]:
    """What a user should know about the file."""
    opset, _ = requirements(pack, widths)
    int4 = "1.19" if pack == "native" else "1.23"
    runtime = {18: "1.17", 21: int4, INT2_OPSET: "1.24"}[opset]  # the oldest that a file of each was run in
    found = [f"opset {opset}: ONNX Runtime {runtime} or newer"]
    found += [*added_note(completed, "onnxruntime"), *float_note(completed)]
    if pack == "native" and opset == INT2_OPSET:
        found.append(
            "native INT2 weights: ONNX Runtime's CPU provider needs session.disable_quant_qdq=1 to load this file, "
            "and computes in float; use it for accelerator toolchains"
        )
    if 8 in widths and completed.quantizers():
        found.append(
            "8-bit weights: on x86 CPUs without VNNI set session.x64quantprecision=1, their kernels may overflow "
            "otherwise"
        )
    return tuple(found)
