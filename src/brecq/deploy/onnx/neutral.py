"""The neutral ONNX graph of a completed program: standard operators, and quantize operators that forget nothing.

ONNX's own QuantizeLinear has no range of codes, so that a 4-bit activation would come out as an 8-bit one. The neutral
graph has these operators instead, in the domain `brecq`; every target rewrites them into what its runtime knows:

    Quantize(x) -> codes            scale, zero_point, low, high, signed      activations, per tensor
    Dequantize(codes) -> x          the same attributes
    DequantizeConstant(codes, scale, zero_point) -> w    axis (-1: per tensor), low, high      weights and biases

Codes of activations are UINT8 (INT8 where `signed` is 1), those of weights INT8, those of biases INT32.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from brecq.converted.convert import to_program
from brecq.converted.grids import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE
from brecq.deploy.complete import Completed
from brecq.deploy.onnx.attention import spell_out_attention
from brecq.deploy.onnx.file import BATCH
from brecq.deploy.onnx.names import name_nodes
from brecq.deploy.outputs import output_names
from brecq.errors import ExportError
from brecq.graph.locations import without_locations
from brecq.graph.ops import module_path, op_name

DOMAIN = "brecq"

_Schema = onnx.defs.OpSchema
_CODES = ["tensor(uint8)", "tensor(int8)", "tensor(int16)", "tensor(int32)"]
_GRID = {"scale": "FLOAT", "zero_point": "INT", "low": "INT", "high": "INT", "signed": "INT"}


def _operator(name: str, inputs: dict[str, list[str]], output: list[str], attributes: dict[str, str]) -> Any:
    types = {**inputs, "result": output}
    schema = _Schema(
        name,
        DOMAIN,
        1,
        inputs=[_Schema.FormalParameter(key, f"T_{key}") for key in inputs],
        outputs=[_Schema.FormalParameter("result", "T_result")],
        type_constraints=[(f"T_{key}", types_, "") for key, types_ in types.items()],
        attributes=[_Schema.Attribute(key, getattr(_Schema.AttrType, kind), "") for key, kind in attributes.items()],
    )
    return onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), name, schema)


_FLOAT = ["tensor(float)"]
_quantize = _operator("Quantize", {"x": _FLOAT}, _CODES, _GRID)
_dequantize = _operator("Dequantize", {"codes": _CODES}, _FLOAT, _GRID)
_constant = _operator(
    "DequantizeConstant",
    {"codes": _CODES, "scale": _FLOAT, "zero_point": ["tensor(int64)"]},
    _FLOAT,
    {"axis": "INT", "low": "INT", "high": "INT"},
)


def _translate_quantize(x: Any, scale: float, zero_point: int, low: int, high: int, dtype: int) -> Any:
    return _quantize(x, scale=scale, zero_point=zero_point, low=low, high=high, signed=int(low < 0))


def _translate_dequantize(codes: Any, scale: float, zero_point: int, low: int, high: int, dtype: int) -> Any:
    return _dequantize(codes, scale=scale, zero_point=zero_point, low=low, high=high, signed=int(low < 0))


def _translate_channels(
    codes: Any, scale: Any, zero_point: Any, axis: int, low: int, high: int, dtype: int, **_: Any
) -> Any:
    return _constant(codes, scale, zero_point, axis=axis, low=low, high=high)


TABLE = {
    QUANTIZE: _translate_quantize,
    DEQUANTIZE: _translate_dequantize,
    DEQUANTIZE_CHANNELS: _translate_channels,
}


def neutral(completed: Completed, opset: int = 18) -> ir.Model:
    """The neutral graph. Inputs and outputs keep the names that the network gives them; dimension 0 is the batch.

    Raises:
        ExportError: an operator of the network has no counterpart in ONNX.
    """
    outputs = output_names(completed)
    model = to_onnx(completed.graph, completed.example_inputs, list(completed.inputs), outputs, opset)
    _name_codes(model, list(completed.quantizers()))
    name_nodes(model.graph)
    return model


def to_onnx(
    graph: GraphModule, examples: Sequence[Tensor], inputs: list[str], outputs: list[str] | None, opset: int = 18
) -> ir.Model:
    """A graph as ONNX, with brecq's operators where it quantizes; dimension 0 of inputs and outputs is `batch`.

    Raises:
        ExportError: an operator has no counterpart in ONNX.
    """
    program = to_program(spell_out_attention(graph), examples)
    with warnings.catch_warnings(), without_locations(), _quiet():
        warnings.simplefilter("ignore")
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                custom_translation_table=TABLE,  # type: ignore[arg-type]
                input_names=inputs,
                output_names=outputs,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many types of its own
            raise ExportError(_explain(error, program.graph)) from error
    assert exported is not None
    model: ir.Model = exported.model
    _keep_names_apart(model.graph)
    _compute_constant_outputs(model.graph)
    _name_batch(model.graph)
    return model


def _keep_names_apart(graph: ir.Graph) -> None:
    """The exporter lets a value keep its name where an output is given the same (`linear`)."""
    outputs = {value.name: value for value in graph.outputs}
    for value in [value for node in graph for value in node.outputs]:
        if outputs.get(value.name, value) is not value:
            value.name = f"{value.name}.inner"


def _name_batch(graph: ir.Graph) -> None:
    """Dimension 0 of the inputs is the batch, and so is that of the outputs that have it in front."""
    symbols = {str(value.shape[0]) for value in graph.inputs if value.shape is not None and len(value.shape)}
    for value in (*graph.inputs, *graph.outputs):
        shape = [] if value.shape is None else list(value.shape)
        if shape and isinstance(shape[0], ir.SymbolicDim) and str(shape[0]) in symbols:
            value.shape = ir.Shape([BATCH, *shape[1:]])


def _compute_constant_outputs(graph: ir.Graph) -> None:
    """Let a node put out what the network returns of its parameters alone: an initializer that no node reads would be
    dropped."""
    for index, value in enumerate(graph.outputs):
        if value.const_value is not None and value.name in graph.initializers:
            name = str(value.name)
            del graph.initializers[name]
            value.name = value.const_value.name = f"{name}_value"
            graph.register_initializer(value)
            node = ir.node("Identity", [value], name=name)
            output = node.outputs[0]
            output.name, output.type, output.shape = name, value.type, value.shape
            graph.append(node)
            graph.outputs[index] = output


def _name_codes(model: ir.Model, names: list[str]) -> None:
    """Codes carry the names of the program's quantizers, by which they are compared with the simulator's."""
    quantizers = [node for node in model.graph if node.domain == DOMAIN and node.op_type == "Quantize"]
    assert len(quantizers) == len(names), "the exporter merged or dropped a quantizer"
    taken = {*model.graph.initializers, *(value.name for value in (*model.graph.inputs, *model.graph.outputs))}
    for node, name in zip(quantizers, names, strict=True):
        node.outputs[0].name = name if name not in taken else f"{name}.codes"


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter prints and logs its every step."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def _explain(error: Exception, graph: Graph) -> str:
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)  # type: ignore[arg-type]
    line = next((line.strip() for line in str(causes[-1]).splitlines() if line.strip()), type(causes[-1]).__name__)
    named = filter(None, (re.search(r"translating node %(\w+)", str(cause)) for cause in causes))
    name = next((match[1] for match in named), None)
    node = next((node for node in graph.nodes if node.name == name), None)
    if node is not None:
        path = module_path(node)
        sizes = [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), torch.SymInt)]
        why = "its arguments depend on the batch size, where ONNX takes numbers alone" if sizes else line
        line = f"{op_name(node)}{f' in {path!r}' if path else ''}: {why}"
    return (
        f"the network cannot be expressed in ONNX: {line}; quantize the part of the network before it alone "
        "(submodule='backbone' in Python, --submodule backbone on the command line)"
    )
