"""Writing a program as a `.tflite` FlatBuffer, on the schema that comes with `ai-edge-litert`.

What is equal is stored once: constants, shapes, and above all quantization parameters, whose zero points would take
eight bytes a channel for each weight and bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from brecq.deploy.lite.packing import pack_int4
from brecq.deploy.lite.program import Operator, Program, Quantization, Tensor

_ALIGNMENT = 16
"""Of constants: what the runtime's kernels read them with."""

_VERSIONS = {
    "CONV_2D": {"float32": 1, "int8": 3, "int4": 7},
    "DEPTHWISE_CONV_2D": {"float32": 2, "int8": 3, "int4": 7},
    "FULLY_CONNECTED": {"float32": 5, "int8": 5, "int4": 10},
    "TRANSPOSE_CONV": {"float32": 4, "int8": 4},
}
"""Versions of operators by the type of their weights: the oldest runtime that knows them."""

_INT8_VERSION = {
    "ADD": 2, "MUL": 2, "SUB": 3, "MEAN": 2, "QUANTIZE": 2, "DEQUANTIZE": 2, "CONCATENATION": 2, "PAD": 2, "PADV2": 2,
    "MAXIMUM": 2, "MINIMUM": 2, "TRANSPOSE": 2, "MAX_POOL_2D": 2, "AVERAGE_POOL_2D": 2, "STRIDED_SLICE": 2,
    "RESIZE_NEAREST_NEIGHBOR": 2, "SOFTMAX": 2, "LOGISTIC": 2, "TANH": 2, "SLICE": 2, "SPLIT": 2, "GATHER": 2,
    "LEAKY_RELU": 2, "GELU": 2,
}  # fmt: skip
"""Of the other operators where they take int8."""

_INT16_LAYERS = {
    "CONV_2D": {"int8": 4, "int4": 7},
    "DEPTHWISE_CONV_2D": {"int8": 5},
    "FULLY_CONNECTED": {"int8": 7, "int4": 13},
    "TRANSPOSE_CONV": {"int8": 4},
}
_INT32_BIAS = {"CONV_2D": 8, "FULLY_CONNECTED": 11, "TRANSPOSE_CONV": 5}
_INT16_VERSION = {
    "ADD": 3, "MUL": 4, "MEAN": 3, "QUANTIZE": 2, "DEQUANTIZE": 3, "CONCATENATION": 3, "PAD": 3, "PADV2": 3,
    "MAXIMUM": 4, "MINIMUM": 4, "TRANSPOSE": 5, "MAX_POOL_2D": 3, "STRIDED_SLICE": 4, "RESIZE_NEAREST_NEIGHBOR": 4,
    "SLICE": 4,
}  # fmt: skip
"""The same beside int16 activations."""


def serialize(program: Program, description: str, metadata: Mapping[str, bytes]) -> bytes:
    """The bytes of a `.tflite` file."""
    return _Writer(program).model(description, metadata)


class _Writer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.builder = flatbuffers.Builder(1 << 20)
        self.tensors = program.tensors()
        self.index = {tensor: position for position, tensor in enumerate(self.tensors)}
        self._shared: dict[Any, int] = {}
        self.buffers: list[bytes] = [b""]

    def model(self, description: str, metadata: Mapping[str, bytes]) -> bytes:
        builder = self.builder
        codes = list(dict.fromkeys((each.kind, version(each)) for each in self.program.operators))
        buffer_of = {tensor: self._buffer(tensor) for tensor in self.tensors}
        entries = {name: self._bytes(content) for name, content in metadata.items()}
        buffers = self._tables([self._write_buffer(content) for content in self.buffers])
        tensors = self._tables([self._tensor(tensor, buffer_of[tensor]) for tensor in self.tensors])
        operators = self._tables([self._operator(each, codes) for each in self.program.operators])
        inputs, outputs = (
            self._integers([self.index[each] for each in group])
            for group in (self.program.inputs, self.program.outputs)
        )
        name = self._string("main")
        schema.SubGraphStart(builder)
        schema.SubGraphAddTensors(builder, tensors)
        schema.SubGraphAddInputs(builder, inputs)
        schema.SubGraphAddOutputs(builder, outputs)
        schema.SubGraphAddOperators(builder, operators)
        schema.SubGraphAddName(builder, name)
        subgraphs = self._tables([schema.SubGraphEnd(builder)])
        signatures = self._tables([self._signature()])
        opcodes = self._tables([self._opcode(*code) for code in codes])
        described = self._string(description)
        facts = self._tables([self._metadata(*entry) for entry in entries.items()])
        schema.ModelStart(builder)
        schema.ModelAddVersion(builder, 3)
        schema.ModelAddOperatorCodes(builder, opcodes)
        schema.ModelAddSubgraphs(builder, subgraphs)
        schema.ModelAddDescription(builder, described)
        schema.ModelAddBuffers(builder, buffers)
        schema.ModelAddMetadata(builder, facts)
        schema.ModelAddSignatureDefs(builder, signatures)
        builder.Finish(schema.ModelEnd(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _buffer(self, tensor: Tensor) -> int:
        """The number of the buffer that holds a tensor's constant; 0 is empty."""
        if tensor.data is None:
            return 0
        data = np.ascontiguousarray(tensor.data)
        return self._bytes(pack_int4(data) if tensor.dtype == "int4" else data.tobytes())

    def _bytes(self, content: bytes) -> int:
        key = ("bytes", content)
        if key not in self._shared:
            self._shared[key] = len(self.buffers)
            self.buffers.append(content)
        return self._shared[key]

    def _write_buffer(self, content: bytes) -> int:
        data = self._aligned(content) if content else None
        schema.BufferStart(self.builder)
        if data is not None:
            schema.BufferAddData(self.builder, data)
        return int(schema.BufferEnd(self.builder))

    def _aligned(self, content: bytes) -> int:
        builder = self.builder
        builder.StartVector(1, len(content), _ALIGNMENT)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        return int(builder.EndVector())

    def _tensor(self, tensor: Tensor, buffer: int) -> int:
        builder = self.builder
        name = self._string(tensor.name)
        shape = self._integers(tensor.shape)
        quantization = None if tensor.quantization is None else self._quantization(tensor.quantization)
        schema.TensorStart(builder)
        schema.TensorAddShape(builder, shape)
        schema.TensorAddType(builder, getattr(schema.TensorType, tensor.dtype.upper()))
        schema.TensorAddBuffer(builder, buffer)
        schema.TensorAddName(builder, name)
        if quantization is not None:
            schema.TensorAddQuantization(builder, quantization)
        schema.TensorAddHasRank(builder, True)
        return int(schema.TensorEnd(builder))

    def _quantization(self, quantization: Quantization) -> int:
        scale = np.ascontiguousarray(quantization.scale, np.float32)
        zeros = np.full(scale.shape, quantization.zero_point, np.int64)
        key = ("quantization", scale.tobytes(), quantization.zero_point, quantization.axis)
        if key not in self._shared:
            scales, zero_points = self._numbers(scale), self._numbers(zeros)
            schema.QuantizationParametersStart(self.builder)
            schema.QuantizationParametersAddScale(self.builder, scales)
            schema.QuantizationParametersAddZeroPoint(self.builder, zero_points)
            schema.QuantizationParametersAddQuantizedDimension(self.builder, quantization.axis)
            self._shared[key] = int(schema.QuantizationParametersEnd(self.builder))
        return self._shared[key]

    def _operator(self, operator: Operator, codes: Sequence[tuple[str, int]]) -> int:
        builder = self.builder
        inputs = self._integers([-1 if each is None else self.index[each] for each in operator.inputs])
        outputs = self._integers([self.index[each] for each in operator.outputs])
        name = _OPTIONS.get(operator.kind, f"{operator.kind.title().replace('_', '')}Options")
        options = self._options(name, operator.options | _bias_option(operator)) if name else None
        schema.OperatorStart(builder)
        schema.OperatorAddOpcodeIndex(builder, codes.index((operator.kind, version(operator))))
        schema.OperatorAddInputs(builder, inputs)
        schema.OperatorAddOutputs(builder, outputs)
        if options is not None:
            schema.OperatorAddBuiltinOptionsType(builder, getattr(schema.BuiltinOptions, name))
            schema.OperatorAddBuiltinOptions(builder, options)
        return int(schema.OperatorEnd(builder))

    def _options(self, name: str, values: Mapping[str, Any]) -> int:
        options = getattr(schema, f"{name}T")()
        for key, value in values.items():
            assert hasattr(options, key), (name, key)
            setattr(options, key, value)
        found = ("options", name, repr(sorted(values.items())))
        if found not in self._shared:
            self._shared[found] = int(options.Pack(self.builder))
        return self._shared[found]

    def _opcode(self, kind: str, number: int) -> int:
        code = getattr(schema.BuiltinOperator, kind)
        schema.OperatorCodeStart(self.builder)
        schema.OperatorCodeAddDeprecatedBuiltinCode(self.builder, min(code, 127))
        schema.OperatorCodeAddVersion(self.builder, number)
        schema.OperatorCodeAddBuiltinCode(self.builder, code)
        return int(schema.OperatorCodeEnd(self.builder))

    def _signature(self) -> int:
        """Names of inputs and outputs."""
        builder = self.builder
        maps = []
        for group in (self.program.inputs, self.program.outputs):
            entries = []
            for tensor in group:
                name = self._string(tensor.name)
                schema.TensorMapStart(builder)
                schema.TensorMapAddName(builder, name)
                schema.TensorMapAddTensorIndex(builder, self.index[tensor])
                entries.append(int(schema.TensorMapEnd(builder)))
            maps.append(self._tables(entries))
        key = self._string("serving_default")
        schema.SignatureDefStart(builder)
        schema.SignatureDefAddInputs(builder, maps[0])
        schema.SignatureDefAddOutputs(builder, maps[1])
        schema.SignatureDefAddSignatureKey(builder, key)
        return int(schema.SignatureDefEnd(builder))

    def _metadata(self, name: str, buffer: int) -> int:
        label = self._string(name)
        schema.MetadataStart(self.builder)
        schema.MetadataAddName(self.builder, label)
        schema.MetadataAddBuffer(self.builder, buffer)
        return int(schema.MetadataEnd(self.builder))

    def _string(self, text: str) -> int:
        return int(self.builder.CreateSharedString(text))

    def _integers(self, values: Sequence[int]) -> int:
        return self._numbers(np.array(values, np.int32))

    def _numbers(self, values: np.ndarray) -> int:
        key = ("numbers", str(values.dtype), values.tobytes())
        if key not in self._shared:
            self._shared[key] = int(self.builder.CreateNumpyVector(values))
        return self._shared[key]

    def _tables(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())


_OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "PADV2": "PadV2Options",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "LOGISTIC": "",
    "RELU": "",
    "RELU6": "",
    "TANH": "",
    "SQRT": "",
    "RSQRT": "",
    "ELU": "",
    "LOG": "",
    "SIN": "",
    "COS": "",
    "FLOOR": "",
    "CEIL": "",
}
"""Names of options where they do not follow from the operator's; empty for operators without any."""


def version(operator: Operator) -> int:
    """The version of an operator that takes what this one takes."""
    weights = operator.inputs[1] if len(operator.inputs) > 1 else None
    types = {each.dtype for each in (*operator.inputs, *operator.outputs) if each is not None}
    if operator.kind in _VERSIONS and weights is not None:
        layers = _INT16_LAYERS if "int16" in types else _VERSIONS
        least = 6 if operator.kind == "CONV_2D" and _is_grouped(operator) else layers[operator.kind][weights.dtype]
        return max(least, _INT32_BIAS[operator.kind]) if _bias_option(operator) else least
    if "int16" in types:
        return _INT16_VERSION.get(operator.kind, 1)
    return _INT8_VERSION.get(operator.kind, 1) if "int8" in types else 1


def _bias_option(operator: Operator) -> dict[str, Any]:
    """What an operator has to say of an int32 bias beside int16 activations, where int64 goes without saying."""
    types = [each.dtype for each in operator.inputs if each is not None]
    found = operator.kind in _INT32_BIAS and "int16" in types and types[-1] == "int32"
    return {"quantizedBiasType": schema.TensorType.INT32} if found else {}


def _is_grouped(operator: Operator) -> bool:
    x, weights = operator.inputs[:2]
    return x is not None and weights is not None and x.shape[-1] != weights.shape[-1]
