"""Error, bits and bytes of each layer as node data for Model Explorer, keyed by the tensors of an exported ONNX file.

The format is that of `model_explorer.node_data_builder`: per graph, values by the name of a node's output.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from brecq.errors import CheckpointError, ExportError
from brecq.page.facts import Layer, gather
from brecq.result import QuantResult
from brecq.storage.files import write

_BLUE, _YELLOW, _RED = "#a9cbe8", "#f5d98b", "#d95f4c"

KINDS: dict[str, tuple[Callable[[Layer], float | None], tuple[str, ...]]] = {
    "sqnr": (lambda layer: layer.sqnr, (_RED, _YELLOW, _BLUE)),
    "bits": (lambda layer: float(layer.bits), (_BLUE, _YELLOW, _RED)),
    "bytes": (lambda layer: float(layer.bytes), (_BLUE, _YELLOW, _RED)),
}
"""What is told of a layer, and colors from its least to its greatest value."""


def write_node_data(result: QuantResult, onnx_file: Path | str, folder: Path | str) -> list[Path]:
    """Write `<file>.sqnr.json`, `.bits.json` and `.bytes.json` into `folder`; load them beside the file.

    Raises:
        ExportError: the file cannot be read, is another result's, or has no node of any of the layers.
            CheckpointError: the folder cannot be written.
    """
    onnx_file, layers = Path(onnx_file), gather(result).layers
    digests = {each.digest() for each in (result, *result.parts.values())}
    graph, outputs = _outputs(onnx_file, [layer.name for layer in layers], digests)
    written = []
    for kind, (value, colors) in KINDS.items():
        found = {outputs[x.name]: {"value": v} for x in layers if x.name in outputs and (v := value(x)) is not None}
        gradient = [{"stop": stop / (len(colors) - 1), "bgColor": color} for stop, color in enumerate(colors)]
        file = Path(folder) / f"{onnx_file.stem}.{kind}.json"
        text = json.dumps({graph: {"results": found, "gradient": gradient}}, indent=1)
        write(file, text.encode(), CheckpointError, parents=True)
        written.append(file)
    return written


def _outputs(file: Path, layers: list[str], digests: set[str]) -> tuple[str, dict[str, str]]:
    """The graph's name, and for each layer the output of the last node that carries its name, of a file that names the
    result it is of."""
    try:
        import onnx

        model = onnx.load(file, load_external_data=False)
    except ImportError as error:
        raise ExportError("the package onnx is missing: pip install 'brecq[onnx]'") from error
    except Exception as error:  # of protobuf and the system
        raise ExportError(f"{file} cannot be read as an ONNX file: {error}") from error
    facts = {each.key: each.value for each in model.metadata_props}
    if facts.get("brecq.digest") not in digests:
        raise ExportError(f"{file} is of another result, or not written by brecq export: export this one again")
    graph, known, found = model.graph, set(layers), {}
    for node in graph.node:
        layer = node.name.rpartition("/")[0]
        if layer in known and node.output:
            found[layer] = node.output[0]
    if not found:
        raise ExportError(f"{file} has no node of this network's layers; give the file that `brecq export` wrote")
    return graph.name, found
