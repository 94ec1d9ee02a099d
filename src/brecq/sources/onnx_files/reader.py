"""Read an ONNX file: constants folded, products with constant matrices made linear layers, the rest as it stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brecq.errors import SourceError
from brecq.sources.onnx_files.module import OnnxModule, Operator, evaluate, path_of
from brecq.sources.onnx_files.operators import OPERATORS, Call
from brecq.sources.source import require

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
_SLOTS = {
    "Conv": ("", "weight", "bias"),
    "ConvTranspose": ("", "weight", "bias"),
    "Linear": ("", "weight", "bias"),
    "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var"),
    "InstanceNormalization": ("", "weight", "bias"),
    "LayerNormalization": ("", "weight", "bias"),
    "GroupNormalization": ("", "weight", "bias"),
}
_ON_HOST = 64
"""Numbers that a constant may hold to be kept on the host too."""


@dataclass(frozen=True)
class Input:
    """An input of the file: its name, dtype, and sizes, `None` where they are free."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...]


_DTYPES = {2: torch.uint8, 6: torch.int64, 7: torch.int64, 9: torch.bool}
"""By ONNX's number of a type (uint8, int32, int64, bool): what it is read as; floating point is float32."""


@dataclass
class _Node:
    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


def read(path: Path, outputs: Sequence[str] = ()) -> tuple[OnnxModule, list[Input]]:
    """The network of an ONNX file, and its inputs.

    Args:
        outputs: names of tensors to end at, in place of the file's own outputs.

    Raises:
        SourceError: it is no ONNX file, holds operators that are not known here, or is quantized already.
    """
    onnx: Any = require("onnx", "onnx", str(path))
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf raises its own types
        raise SourceError(f"{path} is not a readable ONNX file: {type(error).__name__}: {error}") from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    constants = {tensor.name: _array(onnx, tensor, path) for tensor in model.graph.initializer}
    nodes = [_node(onnx, node, path) for node in model.graph.node]
    inputs = [_input(each) for each in model.graph.input if each.name not in constants]
    wanted = list(outputs) or [each.name for each in model.graph.output]
    made = {name for node in nodes for name in node.outputs}
    missing = next((name for name in wanted if name not in made), None)
    if missing is not None:
        some = ", ".join([name for node in nodes for name in node.outputs][-5:])
        raise SourceError(f"{path} has no tensor {missing!r}; its last ones are {some}")
    nodes = _needed(nodes, wanted)
    _check_known(path, nodes)
    batch = inputs[0].sizes[0] if inputs and inputs[0].sizes else None
    nodes = _fold(nodes, constants, opset)
    for node in nodes:
        _as_linear(node, constants)
    nodes = _with_biases(nodes, constants, wanted)
    used = {name for node in nodes for name in node.inputs}
    return _build([each for each in inputs if each.name in used], wanted, nodes, constants, opset, batch), [
        each for each in inputs if each.name in used
    ]


def _array(onnx: Any, tensor: Any, path: Path) -> np.ndarray[Any, Any]:
    value = np.asarray(onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent)))
    if value.dtype in (np.float16, np.float64) or value.dtype.kind == "V" or "float" in str(value.dtype):
        value = value.astype(np.float32)
    return value


def _node(onnx: Any, node: Any, path: Path) -> _Node:
    attributes = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        attributes[attribute.name] = _array(onnx, value, path) if hasattr(value, "raw_data") else value
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
    return _Node(f"{domain}{node.op_type}", node.name, list(node.input), list(node.output), attributes)


def _input(value: Any) -> Input:
    kind = value.type.tensor_type
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in kind.shape.dim)
    return Input(value.name, _DTYPES.get(kind.elem_type, torch.float32), sizes)


def _needed(nodes: list[_Node], wanted: Sequence[str]) -> list[_Node]:
    names, kept = set(wanted), []
    for node in reversed(nodes):
        if names & set(node.outputs):
            kept.append(node)
            names |= set(node.inputs)
    return kept[::-1]


def _check_known(path: Path, nodes: Sequence[_Node]) -> None:
    kinds = Counter(node.kind for node in nodes)
    quantized = next((kind for kind in kinds if kind in _QUANTIZED or kind.startswith("QLinear")), None)
    if quantized is not None:
        raise SourceError(f"{path} is quantized already (it holds {quantized}); give the float file")
    unknown = [f"{kind} ({count})" for kind, count in kinds.items() if kind not in OPERATORS and kind != "Constant"]
    if unknown:
        first = next(node for node in nodes if node.kind not in OPERATORS and node.kind != "Constant")
        before = ", ".join(name for name in first.inputs[:3] if name)
        raise SourceError(
            f"{path} holds operators that brecq does not read: {', '.join(unknown)}; export without them, or end "
            f"before them by naming tensors: {path}:{before.replace(' ', '') or 'NAME'}"
        )


def _fold(nodes: list[_Node], constants: dict[str, np.ndarray[Any, Any]], opset: int) -> list[_Node]:
    """Compute what depends on constants alone."""
    kept = []
    for node in nodes:
        if node.kind == "Constant":
            constants[node.outputs[0]] = _constant(node)
        elif all(name in constants or not name for name in node.inputs) and node.inputs:
            call = Call(node.kind, node.attributes, opset, len(node.outputs))
            found = evaluate(node.kind, call, [constants.get(name) for name in node.inputs])
            for name, value in zip(node.outputs, found, strict=False):
                constants[name] = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
        else:
            kept.append(node)
    return kept


def _constant(node: _Node) -> np.ndarray[Any, Any]:
    for key, value in node.attributes.items():
        if key == "value":
            return np.asarray(value)
        if key in ("value_int", "value_ints"):
            return np.asarray(value, dtype=np.int64)
        if key in ("value_float", "value_floats"):
            return np.asarray(value, dtype=np.float32)
    raise SourceError(f"the constant {node.outputs[0]} is of a kind that brecq does not read")


def _as_linear(node: _Node, constants: dict[str, np.ndarray[Any, Any]]) -> None:
    """A product with a constant matrix, as a linear layer with the weight [outputs, inputs]."""
    if node.kind not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return
    weight = constants.get(node.inputs[1])
    get = node.attributes.get
    if weight is None or weight.ndim != 2 or node.inputs[0] in constants:
        return
    if node.kind == "Gemm":
        bias = constants.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
        plain = get("alpha", 1.0) == 1.0 and get("beta", 1.0) == 1.0 and not get("transA", 0)
        unknown = len(node.inputs) > 2 and bool(node.inputs[2]) and bias is None
        if not plain or unknown or (bias is not None and bias.size not in (1, _outputs(node, weight))):
            return
        if bias is not None:
            name = _renamed(node.inputs[2], constants)
            constants[name] = np.broadcast_to(bias.reshape(-1), (_outputs(node, weight),)).copy()
            node.inputs[2] = name
    name = _renamed(node.inputs[1], constants)
    constants[name] = np.ascontiguousarray(weight if get("transB", 0) and node.kind == "Gemm" else weight.T)
    node.inputs[1] = name
    node.kind, node.attributes = "Linear", {}


def _outputs(node: _Node, weight: np.ndarray[Any, Any]) -> int:
    return int(weight.shape[0] if node.attributes.get("transB", 0) else weight.shape[1])


def _renamed(name: str, constants: dict[str, np.ndarray[Any, Any]]) -> str:
    """A name for another form of a constant, which others may read as it is."""
    return f"{name}" if f"{name}:linear" in constants else f"{name}:linear"


def _with_biases(nodes: list[_Node], constants: dict[str, np.ndarray[Any, Any]], wanted: Sequence[str]) -> list[_Node]:
    """An addition of constants behind a linear layer is its bias."""
    readers = Counter(name for node in nodes for name in node.inputs) + Counter(wanted)
    makers = {node.outputs[0]: node for node in nodes if node.kind == "Linear" and len(node.inputs) == 2}
    kept = []
    for node in nodes:
        if node.kind == "Add":
            for source, other in (node.inputs, node.inputs[::-1]):
                layer, bias = makers.get(source), constants.get(other)
                if layer is None or bias is None or readers[source] != 1:
                    continue
                outputs = constants[layer.inputs[1]].shape[0]
                if bias.size == outputs and bias.shape[-1:] == (outputs,):
                    constants[f"{other}:bias"] = bias.reshape(-1)
                    layer.inputs.append(f"{other}:bias")
                    layer.outputs = node.outputs
                    del makers[source]
                    break
            else:
                kept.append(node)
            continue
        kept.append(node)
    return kept


def _build(
    inputs: Sequence[Input],
    wanted: Sequence[str],
    nodes: Sequence[_Node],
    constants: dict[str, np.ndarray[Any, Any]],
    opset: int,
    batch: int | None,
) -> OnnxModule:
    module = OnnxModule.of([each.name for each in inputs], wanted)
    for node in nodes:
        call = Call(node.kind, node.attributes, opset, len(node.outputs))
        call.batch = batch
        slots = _SLOTS.get(node.kind, ())
        weight = node.inputs[1].removesuffix(":linear") if slots and node.inputs[1] in constants else ""
        path = module.add(
            path_of(node.kind, node.name, weight, node.outputs[0]), Operator(call), node.inputs, node.outputs
        )
        for index, name in enumerate(node.inputs):
            if name not in constants or name in module.places or name in module.hosts:
                continue
            value = constants[name]
            if index < len(slots) and slots[index]:
                module.hold(name, value, path, slots[index])
            elif value.dtype != object and value.size > _ON_HOST:
                module.hold(name, value, path, "constant")
            else:
                module.hosts[name] = value
    for name in wanted:
        if name in constants:
            raise SourceError(f"the output {name!r} is a constant; name outputs that depend on the inputs")
    return module
