"""LiteRT's interpreter: loading a `.tflite` file, running it, and looking at its inner tensors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from brecq.deploy.lite.lowering import Runtime as Lowered
from brecq.deploy.runtime import Kernels, run_in_batches
from brecq.errors import ConfigError, ExportError, first_line

if TYPE_CHECKING:
    from brecq.result import QuantResult

METADATA = "brecq"
LITERT = Lowered("LiteRT")
LAYERS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}


class Session:
    """A `.tflite` file on the CPU, with XNNPACK where it has kernels, as the interpreter runs it by default.

    Inputs and outputs are as the network has them, [N, C, H, W]; inputs of any number of samples run in batches of the
    size that the file has.

    Args:
        source: the path of a file, or its bytes. kernels: `default`, or `reference` for the slow ones that define
            what integer operators compute.

    Raises:
        ExportError: the interpreter does not load the file.
    """

    name = "LiteRT"

    def __init__(self, source: Path | bytes, threads: int = 1, kernels: str = "default") -> None:
        self._content = source if isinstance(source, bytes) else source.read_bytes()
        if self._content[4:8] != b"TFL3":
            raise ExportError(f"{source if isinstance(source, Path) else 'the content'} is not a .tflite file")
        self._resolver = OpResolverType.BUILTIN_REF if kernels == "reference" else OpResolverType.BUILTIN
        self._threads = threads
        self._interpreter = self._load(False)
        facts = _facts(self._content)
        self.digest: str | None = facts.get("digest")
        self.codes: dict[str, Any] = facts.get("codes", {})
        signature = self._interpreter.get_input_details()
        self.inputs = tuple(str(each["name"]) for each in signature)
        self.batch = int(signature[0]["shape"][0])
        self._tracing: Any = None

    def _load(self, preserve: bool) -> Any:
        try:
            interpreter = Interpreter(
                model_content=self._content,
                num_threads=self._threads,
                experimental_op_resolver_type=self._resolver,
                experimental_preserve_all_tensors=preserve,
            )
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"LiteRT does not load the file: {first_line(error)}") from error
        return interpreter

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return self._run(self._interpreter, inputs)

    def trace(self, *inputs: np.ndarray) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        """The outputs, and the codes of every quantized activation by name, as the network has them.

        Of one run: `inputs` are as many samples as the file takes (`brecq.deploy.runtime.traceable`).
        """
        if len(inputs[0]) != self.batch:
            raise ConfigError(f"the file takes {self.batch} samples, got {len(inputs[0])}; trace them batch by batch")
        if self._tracing is None:
            self._tracing = self._load(True)
        outputs = self._run(self._tracing, inputs)
        codes = {name: _codes(self._tracing.get_tensor(index), *rest) for name, (index, *rest) in self.codes.items()}
        return outputs, codes

    def _run(self, interpreter: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        if len(inputs) != len(self.inputs):
            raise ConfigError(
                f"the file takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), got {len(inputs)}"
            )

        def run(values: list[np.ndarray]) -> list[np.ndarray]:
            for details, value in zip(interpreter.get_input_details(), values, strict=True):
                interpreter.set_tensor(details["index"], np.ascontiguousarray(_channels_last(value)))
            interpreter.invoke()
            found = [interpreter.get_tensor(details["index"]) for details in interpreter.get_output_details()]
            return [_channels_first(np.asarray(each)) for each in found]

        return run_in_batches(run, inputs, self.batch)

    def kernels(self) -> Kernels:
        """Layers by the type of their outputs."""
        details = {each["index"]: each for each in self._interpreter.get_tensor_details()}
        counts: Counter[str] = Counter()
        integer, floats = 0, list[str]()
        for each in self._interpreter._get_ops_details():
            if each["op_name"] == "DELEGATE":
                continue
            counts[each["op_name"]] += 1
            if each["op_name"] in LAYERS:
                if details[each["outputs"][0]]["dtype"] in (np.int8, np.int16):
                    integer += 1
                else:
                    floats.append(str(details[each["inputs"][1]]["name"]).removesuffix(".weight"))
        return Kernels(integer, len(floats), dict(counts), tuple(floats))


def load(path: Path, threads: int = 1) -> Session:
    """An exported file in LiteRT."""
    return Session(path, threads)


def float_of(result: QuantResult, beside: Session, threads: int = 1) -> Session:
    """The float network that a result came from, in LiteRT, for as many samples as the file `beside` it."""
    from brecq.deploy.complete import Completed
    from brecq.deploy.floats import float_graph
    from brecq.deploy.lite.lower import lower
    from brecq.deploy.litert.flatbuffer import serialize

    completed = Completed(float_graph(result), (), result.example_inputs, ())
    return Session(serialize(lower(completed, beside.batch, LITERT), "float", {}), threads)


def _codes(tensor: np.ndarray, offset: int, layout: str) -> np.ndarray:
    """Codes as the network's quantizer makes them."""
    order = [layout.index(str(dim)) for dim in range(len(layout))]
    return (tensor.astype(np.int32) - offset).transpose(order)


def _channels_last(value: np.ndarray) -> np.ndarray:
    return value.transpose(0, 2, 3, 1) if value.ndim == 4 else value


def _channels_first(value: np.ndarray) -> np.ndarray:
    return value.transpose(0, 3, 1, 2) if value.ndim == 4 else value


def _facts(content: bytes) -> dict[str, Any]:
    """What brecq wrote into a file's metadata; nothing of another's."""
    model = schema.Model.GetRootAs(content, 0)
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name() == METADATA.encode():
            facts: dict[str, Any] = json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
            return facts
    return {}
