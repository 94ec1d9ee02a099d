"""OpenVINO: loading an IR, running it on the CPU, and counting the kernels that it chose."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from brecq.deploy.runtime import Kernels
from brecq.errors import ConfigError, ExportError

KEY = ["brecq", "digest"]
LAYERS = ("Convolution", "Deconvolution", "FullyConnected")


class Session:
    """An IR in OpenVINO, on the CPU. What is not computed on integers is computed in float32.

    Raises:
        ExportError: OpenVINO does not load the file.
    """

    name = "OpenVINO"

    def __init__(self, path: Path, threads: int = 1) -> None:
        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # or float activations of layers with integer weights are rounded
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        try:
            core = openvino.Core()
            model = core.read_model(path)
            self._model = core.compile_model(model, "CPU", properties)
        except RuntimeError as error:
            line = str(error).strip().splitlines()[-1]
            raise ExportError(f"OpenVINO does not load {path}: {line}; export it again, with its .bin file") from error
        self.digest = str(model.get_rt_info(KEY).astype(str)) if model.has_rt_info(KEY) else None
        self.inputs = tuple(value.get_any_name() for value in self._model.inputs)
        self._request = self._model.create_infer_request()

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        if len(inputs) != len(self.inputs):
            raise ConfigError(
                f"the file takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), got {len(inputs)}"
            )
        found = self._request.infer(list(inputs))
        return [np.array(found[output]) for output in self._model.outputs]

    def kernels(self) -> Kernels:
        """The kernels of the compiled model."""
        names = self.layer_kernels().values()
        integer = sum(map(is_integer, names))
        return Kernels(integer, len(names) - integer, dict(Counter(kind for kind, _, _ in self._operators())))

    def layer_kernels(self) -> dict[str, str]:
        """The kernel of each convolution and linear layer by its name, e.g. `brgconv_avx512_I8`."""
        return {name: kernel for kind, name, kernel in self._operators() if kind in LAYERS}

    def _operators(self) -> list[tuple[str, str, str]]:
        """Kind, name and kernel of every operator."""
        found = []
        for node in self._model.get_runtime_model().get_ordered_ops():
            info: Any = node.get_rt_info()
            kind, kernel = (str(info[key].astype(str)) for key in ("layerType", "primitiveType"))
            found.append((kind, node.get_friendly_name(), kernel))
        return found


def load(path: Path, threads: int = 1) -> Session:
    """An exported IR in OpenVINO."""
    return Session(path, threads)


def load_float(path: Path, threads: int = 1) -> Session:
    """A float network, an ONNX file, in OpenVINO."""
    return Session(path, threads)


def is_integer(kernel: str) -> bool:
    """True for a kernel that computes on 8-bit integers."""
    return kernel.lower().endswith(("_i8", "_u8"))
