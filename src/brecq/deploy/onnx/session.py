"""ONNX Runtime: loading a file, running it, and counting the kernels that it chose."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from brecq.deploy.onnx.packing import INT2_OPSET
from brecq.deploy.onnx.weight_only import ACCURACY_LEVEL
from brecq.deploy.runtime import Kernels, run_in_batches
from brecq.errors import ConfigError, ExportError, first_line

_INTEGER = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger", "MatMulNBits"}
_FLOAT = {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
_UNPACKING = {"DequantizeLinear", "Transpose", "Reshape", "Cast", "Mul", "ReorderInput", "Slice"}


class Session:
    """An ONNX file in ONNX Runtime, on the CPU. One with a fixed batch size has it as `batch`, and runs inputs of any
    number of samples in batches of it.

    Args:
        source: the path of a file, or a serialized model. digest: of the result that it was exported from.
        configuration: session configuration entries, such as `{"session.disable_quant_qdq": "1"}`.

    Raises:
        ExportError: the runtime does not load the file.
    """

    name = "ONNX Runtime"
    timed = True

    def __init__(
        self,
        source: Path | bytes,
        threads: int = 1,
        configuration: Mapping[str, str] | None = None,
        digest: str | None = None,
    ) -> None:
        self.digest = digest
        self._source, self._configuration = source, dict(configuration or {})
        self._tapped: tuple[list[str], Session] | None = None
        self._session = self._load(self._options(threads))
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        shape = self._session.get_inputs()[0].shape if self.inputs else []
        if shape and isinstance(shape[0], int):
            self.batch = shape[0]

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        if len(inputs) != len(self.inputs):
            raise ConfigError(
                f"the file takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), got {len(inputs)}"
            )

        def run(values: list[np.ndarray]) -> list[np.ndarray]:
            found: list[np.ndarray] = self._session.run(None, dict(zip(self.inputs, values, strict=True)))
            return found

        return run_in_batches(run, inputs, self.batch) if hasattr(self, "batch") else run(list(inputs))

    def codes(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The codes of every quantized activation by name, in order."""
        return self.trace(*inputs)[1]

    def trace(self, *inputs: np.ndarray) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        """The outputs, and the codes of every quantized activation by name, in order."""
        if self._tapped is None:
            model = onnx.load(self._source) if isinstance(self._source, Path) else onnx.load_from_string(self._source)
            names = code_names(model)
            tapped = with_outputs(model, names).SerializeToString()
            self._tapped = (names, Session(tapped, configuration=self._configuration))
        names, session = self._tapped
        found = session(*inputs)
        count = len(found) - len(names)
        return found[:count], dict(zip(names, found[count:], strict=True))

    def kernels(self) -> Kernels:
        """The kernels of the optimized graph."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "optimized.onnx"
            options = self._options(1)
            options.optimized_model_filepath = str(file)
            self._load(options)
            return count_kernels(onnx.load(file))

    def _options(self, threads: int) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        for key, value in self._configuration.items():
            options.add_session_config_entry(key, value)
        return options

    def _load(self, options: Any) -> Any:
        source = str(self._source) if isinstance(self._source, Path) else self._source
        try:
            return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises types of its own
            what = self._source if isinstance(self._source, Path) else "the model"
            raise ExportError(
                f"ONNX Runtime {onnxruntime.__version__} does not load {what}: {first_line(error)}; export it "
                "with --pack planes, which every version from 1.17 on loads, or update the runtime"
            ) from error


def load(path: Path, threads: int = 1, more: Mapping[str, str] | None = None) -> Session:
    """An exported file in ONNX Runtime, computing what was measured: float activations stay float in weight-only
    layers, and files with native INT2 weights get the setting that they need. `more` configures the session."""
    settings = {ACCURACY_LEVEL: "1", **(more or {})}
    facts, opset = _facts(path)
    if facts.get("brecq.pack") == "native" and opset == INT2_OPSET:
        settings["session.disable_quant_qdq"] = "1"
    return Session(path, threads, settings, facts.get("brecq.digest"))


def load_float(path: Path, threads: int = 1) -> Session:
    """A float network in ONNX Runtime."""
    return Session(path, threads)


def code_names(model: onnx.ModelProto) -> list[str]:
    """The names of all quantized activations: what QuantizeLinear, or the Clip alone behind it, writes."""
    count = Counter(name for node in model.graph.node for name in node.input)
    clips = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "Clip" and count[n.input[0]] == 1}
    written = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return [clips.get(name, name) for name in written]


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of a model that also returns values of these names."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types = {node.output[0]: node for node in model.graph.node}
    zeros = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for name in names:
        node = types[name] if types[name].op_type == "QuantizeLinear" else types[types[name].input[0]]
        copy.graph.output.append(onnx.helper.make_tensor_value_info(name, zeros[node.input[2]], None))
    return copy


def count_kernels(model: onnx.ModelProto) -> Kernels:
    """Count the layers of an optimized graph: operators with a constant weight. Products of activations are none."""
    makers = {output: node for node in model.graph.node for output in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}

    def is_constant(name: str) -> bool:
        maker = makers.get(name)
        if maker is None:
            return name in constants
        return maker.op_type in _UNPACKING and is_constant(maker.input[0])

    integer = sum(node.op_type in _INTEGER for node in model.graph.node)
    floats = [
        node.name for node in model.graph.node if node.op_type in _FLOAT and any(map(is_constant, node.input[:2]))
    ]
    return Kernels(integer, len(floats), dict(Counter(node.op_type for node in model.graph.node)), tuple(floats))


def _facts(path: Path) -> tuple[dict[str, str], int]:
    """What brecq wrote into a file's metadata (nothing into another's), and its opset."""
    try:
        model = onnx.load(path)
        opset = max((each.version for each in model.opset_import if not each.domain), default=0)
        return {entry.key: entry.value for entry in model.metadata_props}, opset
    except Exception as error:
        raise ExportError(f"{path} is not an ONNX file: {first_line(error)}") from error
