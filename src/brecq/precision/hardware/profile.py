"""Measure a latency table on this machine: each distinct layer of a network as a model of its own in ONNX Runtime."""

from __future__ import annotations

import platform
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from brecq.capture.export import capture, example_batch
from brecq.config import FLOAT, QuantConfig
from brecq.errors import ConfigError
from brecq.forward import Inputs
from brecq.partition.cut import partition
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.precision.hardware.table import Entry, LatencyTable, Signature, signature
from brecq.precision.layers import Layer, dissect
from brecq.precision.options import ProfileConfig
from brecq.progress import Progress

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

KERNELS = (8, FLOAT)
"""Bits of weights and inputs of the kernels that ONNX Runtime has on a CPU: integers of fewer run as 8 bits."""


def measure_latency(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
    progress: Progress | None = None,
) -> LatencyTable:
    """A latency table of a network's convolutions and linear layers in ONNX Runtime's CPU provider.

    Every distinct shape is measured once, as a float32 and as an 8-bit model for one sample: `warmup` runs, then the
    median of `repeats`, the call of the runtime included. Other operators and what happens between layers
    (fusion, layout changes) are not in the table.

    Args:
        model: any module that `torch.export` can capture. example_inputs: each [N, ...], by position or by name.
        threads: of the runtime.

    Raises:
        ConfigError: `repeats`, `warmup` or `threads` out of range, or ONNX Runtime is not installed.
        CaptureError: the model cannot be captured. HardwareError: a layer cannot be built as an ONNX model.
    """
    ProfileConfig(repeats, warmup, threads)  # validates
    try:
        import onnxruntime

        from brecq.precision.hardware.onnx_layers import layer_model
    except ImportError as error:
        raise ConfigError(f"profiling needs {error.name}; install it with pip install 'brecq[profile]'") from error
    progress = progress or Progress()
    progress.stage("capturing the network")
    distinct: dict[Signature, Layer] = {}
    for layer in network_layers(model, example_inputs):
        distinct.setdefault(signature(layer), layer)
    entries = []
    for number, (known, layer) in enumerate(distinct.items(), 1):
        progress.stage(f"[{number}/{len(distinct)}] {layer.name}: {known}")
        for bits in KERNELS:
            session = _session(layer_model(layer, quantized=bits != FLOAT).SerializeToString(), threads)
            entries.append(Entry(known, bits, bits, _median(session, layer, bits, repeats, warmup)))
    progress.close()
    facts = {
        "runtime": f"onnxruntime {onnxruntime.__version__}", "provider": "CPUExecutionProvider",
        "machine": platform.processor() or platform.machine(), "threads": threads, "repeats": repeats,
        "warmup": warmup, "batch": 1,
    }  # fmt: skip
    return LatencyTable("onnxruntime", tuple(entries), metadata=facts)


def network_layers(model: nn.Module, example_inputs: Inputs) -> tuple[Layer, ...]:
    """The layers of a network, in order of execution."""
    config = QuantConfig()
    quantizer = BrecqQuantizer(config)
    prepared = prepare(capture(model, example_batch(example_inputs)), quantizer)
    assert quantizer.placement is not None
    return dissect(prepared, partition(prepared, "layer"), quantizer.placement, (8,), None).layers


def _session(model: bytes, threads: int) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _median(session: InferenceSession, layer: Layer, bits: int, repeats: int, warmup: int) -> float:
    """Milliseconds of one call."""
    generator = np.random.default_rng(0)
    shape = (1, *layer.input_shape)
    x: Any = (
        generator.standard_normal(shape, dtype=np.float32)
        if bits == FLOAT
        else generator.integers(0, 256, shape, dtype=np.uint8)
    )
    for _ in range(warmup):
        session.run(None, {"x": x})
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        session.run(None, {"x": x})
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)
