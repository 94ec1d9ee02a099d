"""compressed-tensors `pack-quantized`: a folder of packed linear weights that transformers and vLLM read.

Weight-only. Each quantized linear layer becomes `<layer>.weight_packed` (int32, codes packed densely along the input
axis, 32 codes of b bits in b words), `weight_scale` (float32 [out, 1]), `weight_shape` (int64 [2]) and, where the
weight is asymmetric, `weight_zero_point` (packed along the output axis). The value of a weight is the one that brecq
measured: (code - zero_point) * scale in float32. Everything else is stored plain, convolutions in float32.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from torch import Tensor
from torch.fx import GraphModule

from brecq.checkpoint.tensors import PackedWeight, Stored, collect_tensors
from brecq.converted.grids import DEQUANTIZE, DEQUANTIZE_CHANNELS
from brecq.converted.layers import quantized_activations, weighted_layers
from brecq.deploy.formats import Exported, some
from brecq.errors import ExportError
from brecq.graph.ops import aten
from brecq.storage.arrays import write_arrays
from brecq.storage.files import write as write_file

if TYPE_CHECKING:
    from brecq.result import QuantResult

BITS = (2, 3, 4, 8)
ASYMMETRIC_BITS = (4, 8)
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class _Linear:
    """A quantized linear layer: codes int8 [out, in], scale float32 [out], zero points int8 [out] or `None`."""

    name: str
    bits: int
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None


def write(result: QuantResult, path: Path, *, model_config: str | None = None, prefix: str | None = None) -> Exported:
    """Write `model.safetensors` and `config.json` into the folder `path`, creating it.

    Args:
        result: quantized with float activations (`activations=32`), its linear layers to 2, 3, 4 or 8 bits.
        model_config: `config.json` of the float transformers model. With it the folder is complete:
            `from_pretrained(path)` builds the network and loads the weights.
        prefix: of the names in the quantized network that the names in the file go without; by default what
            brecq's wrapper around a transformers model adds (`model.`).

    Raises:
        ExportError: the format cannot express the result, or a file cannot be read or written; the folder is
            unchanged then.
    """
    graph = result.converted
    assert isinstance(graph, GraphModule)
    if prefix is None:
        prefix = result.metadata.get("wrapped", "")
    _refuse_quantized_activations(graph)
    tensors = {name.removeprefix(prefix): value for name, value in collect_tensors(graph).items()}
    layers = {layer.weight.removeprefix(prefix): layer.kind for layer in weighted_layers(graph) if layer.weight}
    quantized = {name for name, kind in layers.items() if kind == "linear" and isinstance(tensors[name], PackedWeight)}
    tables = {name.removeprefix(prefix) for name in _tables(graph)}
    packed = _linears({name: tensors[name] for name in layers if name in quantized}, tables)
    ignore = [name.removesuffix(".weight") for name in layers if name not in quantized]
    config = _read_config(model_config)
    config["quantization_config"] = _quantization_config(packed, ignore)
    plain = {name: value for name, value in tensors.items() if name not in quantized and not _is_mask(name, value)}
    notes = _notes(packed, plain, ignore)
    arrays = {name: value if isinstance(value, Tensor) else value.dequantize() for name, value in plain.items()}
    for layer in packed:
        arrays |= _pack(layer)
    files = _write(path, arrays, config)
    return Exported(path, files, sum(file.stat().st_size for file in files), notes)


def _is_mask(name: str, value: Stored) -> bool:
    """True for truth values and whole numbers that the network's code makes anew: no parameters went into them."""
    return "_folded" in name and isinstance(value, Tensor) and not value.is_floating_point()


def _refuse_quantized_activations(graph: GraphModule) -> None:
    count = len(quantized_activations(graph))
    if count:
        raise ExportError(
            f"compressed-tensors pack-quantized holds weights only, and this result quantizes {count} activations; "
            "quantize with --activation-bits 32 (activations=32), or export to ONNX"
        )


def _tables(graph: GraphModule) -> set[str]:
    """Quantized weights that are the tables of embeddings, too."""
    readers: list[Any] = [node.args[0] for node in graph.graph.nodes if node.target is aten.embedding.default]
    return {str(table.args[0].target) for table in readers if table.target in (DEQUANTIZE, DEQUANTIZE_CHANNELS)}


def _linears(weights: dict[str, Stored], tables: Collection[str]) -> list[_Linear]:
    """The layers as the format holds them; one error names all that it cannot hold."""
    problems: dict[str, list[str]] = defaultdict(list)
    layers = []
    for name, weight in weights.items():
        assert isinstance(weight, PackedWeight)
        layer = name.removesuffix(".weight")
        # The format's codes are signed: a range from 0 moves down by half, zero points with it.
        shift = 1 << (weight.bits - 1) if weight.low == 0 else 0
        zero_point = weight.zero_point - shift
        symmetric = not zero_point.any()
        half = 1 << (weight.bits - 1)
        if name in tables:
            problems["whose weight is shared with an embedding; leave them float"].append(layer)
        elif not name.endswith(".weight"):
            problems["whose weight is shared with another layer or no module's; leave them float"].append(name)
        elif weight.axis != 0:
            problems["with one scale per tensor, where the format has one per output"].append(layer)
        elif weight.bits not in BITS:
            problems[f"at {weight.bits} bits; choose from {', '.join(map(str, BITS))}"].append(layer)
        elif not symmetric and weight.bits not in ASYMMETRIC_BITS:
            problems[f"asymmetric at {weight.bits} bits; quantize with --weight-scheme symmetric"].append(layer)
        elif int(zero_point.min()) < -half or int(zero_point.max()) >= half:
            problems["with zero points beyond the codes; quantize with --weight-scheme symmetric"].append(layer)
        else:
            codes = (weight.codes().to(torch.int16) - shift).to(torch.int8)
            kept = None if symmetric else zero_point.to(torch.int8)
            layers.append(_Linear(layer, weight.bits, codes, weight.scale, kept))
    if problems:
        found = "; ".join(f"{some(names)} {what}" for what, names in problems.items())
        raise ExportError(f"compressed-tensors pack-quantized cannot hold {found} (--set 'PATTERN' w=BITS or float)")
    if not layers:
        raise ExportError("this result has no quantized linear layer; compressed-tensors holds no others: use ONNX")
    return layers


def _pack(layer: _Linear) -> dict[str, Tensor]:
    arrays = {
        f"{layer.name}.weight_packed": pack_to_int32(layer.codes, layer.bits),
        f"{layer.name}.weight_scale": layer.scale[:, None],
        f"{layer.name}.weight_shape": torch.tensor(layer.codes.shape),
    }
    if layer.zero_point is not None:
        arrays[f"{layer.name}.weight_zero_point"] = pack_to_int32(layer.zero_point[:, None], layer.bits, packed_dim=0)
    return arrays


def _quantization_config(layers: list[_Linear], ignore: list[str]) -> dict[str, Any]:
    """`quantization_config`, with one group for each kind of weight; layers are named one by one.

    The customary target `Linear` would also claim linear layers of the model that the program never runs.
    """
    groups: dict[tuple[int, bool], list[str]] = defaultdict(list)
    for layer in layers:
        groups[layer.bits, layer.zero_point is None].append(layer.name)
    schemes = {
        f"group_{index}": QuantizationScheme(
            targets=names,
            weights=QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="channel"),
            format="pack-quantized",
        )
        for index, ((bits, symmetric), names) in enumerate(groups.items())
    }
    config = QuantizationConfig(
        config_groups=schemes, format="pack-quantized", quantization_status="compressed", ignore=ignore
    )
    return config.model_dump(mode="json", exclude_none=True)


def _notes(packed: list[_Linear], plain: dict[str, Stored], ignore: list[str]) -> tuple[str, ...]:
    notes = []
    if ignore:
        notes.append(f"stored in float32, as the format holds linear layers only: {some(ignore)}")
    # Constants that capture computed have no name in the model; `fold_constants` marks them.
    computed = [name for name in plain if "_folded" in name]
    if computed:
        notes.append(
            f"{some(computed)} were computed from parameters that the file does not hold; a model needs those "
            "from the float checkpoint"
        )
    if any(layer.zero_point is not None for layer in packed):
        notes.append(
            "asymmetric weights: transformers loads them with CompressedTensorsConfig(dequantize=True) and one "
            "bit-width for all layers only; --weight-scheme symmetric has no such limit"
        )
    return tuple(notes)


def _read_config(file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot read the model's configuration {file}: {error}; give its config.json") from error
    if not isinstance(config, dict):
        raise ExportError(f"{file} holds no JSON object; give the config.json of a transformers model")
    return config


def _write(folder: Path, arrays: dict[str, Tensor], config: dict[str, Any]) -> tuple[Path, ...]:
    write_arrays(folder / WEIGHTS, arrays, {"format": "pt"}, ExportError)
    write_file(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode(), ExportError)
    return (folder / WEIGHTS, folder / CONFIG)
