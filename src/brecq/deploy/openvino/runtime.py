"""Running an IR: on the CPU, in float32 where it is not in integers, and what kernels OpenVINO chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino

LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


def compile_cpu(path: Path, threads: int = 0) -> Any:
    """The compiled model; call it with a list of arrays. `threads` 0 leaves their number to OpenVINO."""
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # or float activations of layers with integer weights are rounded
        "INFERENCE_NUM_THREADS": threads,
    }
    return openvino.Core().compile_model(path, "CPU", properties)


def layer_kernels(compiled: Any) -> dict[str, str]:
    """The kernel of each convolution and matrix product by its name, e.g. `brgconv_avx512_I8`; `I8` is an integer one."""
    kernels = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if str(info["layerType"].astype(str)) in LAYERS:
            kernels[node.get_friendly_name()] = str(info["primitiveType"].astype(str))
    return kernels


def is_integer(kernel: str) -> bool:
    """True for a kernel that computes on 8-bit integers."""
    return kernel.lower().endswith(("_i8", "_u8"))
