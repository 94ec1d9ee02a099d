"""`benchmark`: how large an exported file is, and how fast its runtime runs it, beside the float network."""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from brecq.deploy.formats import needs
from brecq.deploy.options import BenchmarkConfig
from brecq.deploy.runtime import Kernels, Runner, open_file
from brecq.deploy.sizes import ideal_bytes
from brecq.errors import ConfigError

if TYPE_CHECKING:
    from brecq.result import QuantResult

WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call at one batch size: the shortest and the median call of `runs`.

    `cpu` is the least processor time of a call; it counts all threads, and no waiting.
    """

    batch: int
    shortest: float
    median: float
    cpu: float
    runs: int


@dataclass(frozen=True)
class Benchmark:
    """What `benchmark` measured.

    Attributes:
        runtime: its name. size: bytes of the file. ideal: bytes that the bits alone would take.
        float_size: bytes of the float network's ONNX file.
        quantized, floating: latencies by batch size; `floating` is empty where the runtime takes no float network.
    """

    runtime: str
    threads: int
    size: int
    ideal: int
    float_size: int
    quantized: tuple[Latency, ...]
    floating: tuple[Latency, ...]
    kernels: Kernels | None

    def speedup(self, batch: int) -> float | None:
        """How many times faster the quantized file is than the float network.

        On one thread the ratio of the least processor times, which other work on the machine hardly changes; on
        several that of the shortest calls.
        """
        pairs = zip(self.floating, self.quantized, strict=False)
        if self.threads == 1:
            return next((f.cpu / q.cpu for f, q in pairs if q.batch == batch and q.cpu), None)
        return next((f.shortest / q.shortest for f, q in pairs if q.batch == batch), None)

    def slower(self) -> list[int]:
        """Batch sizes at which the quantized file is slower than the float network."""
        return [each.batch for each in self.quantized if (self.speedup(each.batch) or 1) < 1]


def benchmark(
    result: QuantResult,
    path: Path | str,
    *,
    format: str | None = None,
    batches: Sequence[int] = (1, 16),
    runs: int = 50,
    threads: int = 1,
    seconds: float = 20.0,
) -> Benchmark:
    """Time an exported file and the float network in the same runtime, call after call in turn.

    Inputs are random numbers: the time of a call does not depend on them.

    Args:
        batches: batch sizes. runs: calls of each, fewer if they take longer than `seconds` a batch size.

    Raises:
        ConfigError: a batch size, a number of runs or threads below 1; a format that is only checked here, not timed.
        ExportError: as `open_file`.
    """
    BenchmarkConfig(tuple(batches), runs, threads, seconds)  # validates
    runner, kind = open_file(path, format, threads)
    if not getattr(runner, "timed", True):
        raise ConfigError(f"{runner.name} says nothing of the time that {kind.name} files take where they are for")
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "float.onnx"
        with needs("onnx", "the float network to compare with"):
            from brecq.deploy.onnx.reference import write_float
        write_float(result, reference)
        float_size = reference.stat().st_size
        module: Any = importlib.import_module(kind.runner)
        runners: list[Runner] = [runner]
        if hasattr(module, "load_float"):
            runners.insert(0, module.load_float(reference, threads))
        elif hasattr(module, "float_of"):
            runners.insert(0, module.float_of(result, runner, threads))
        measured = [_measure(runners, result, batch, runs, seconds) for batch in batches]
    return Benchmark(
        runner.name,
        threads,
        _size(Path(path), kind.files),
        ideal_bytes(result),
        float_size,
        tuple(times[-1] for times in measured),
        tuple(times[0] for times in measured if len(times) > 1),
        runner.kernels(),
    )


def _measure(runners: Sequence[Runner], result: QuantResult, batch: int, runs: int, seconds: float) -> list[Latency]:
    generator = torch.Generator().manual_seed(0)
    inputs = [_random(value, batch, generator) for value in result.example_inputs]
    times: list[list[float]] = [[] for _ in runners]
    cpu: list[list[float]] = [[] for _ in runners]
    for runner in runners:
        for _ in range(WARM_UP):
            runner(*inputs)
    began = time.perf_counter()
    for run in range(runs):
        for index, runner in enumerate(runners):
            wall, processor = time.perf_counter(), time.process_time()
            runner(*inputs)
            times[index].append(1e3 * (time.perf_counter() - wall))
            cpu[index].append(1e3 * (time.process_time() - processor))
        if run and time.perf_counter() - began > seconds:
            break
    return [
        Latency(batch, min(wall), statistics.median(wall), min(processor), len(wall))
        for wall, processor in zip(times, cpu, strict=True)
    ]


def _random(like: torch.Tensor, batch: int, generator: torch.Generator) -> np.ndarray:
    shape = (batch, *like.shape[1:])
    if like.is_floating_point():
        found: np.ndarray = torch.randn(shape, generator=generator).to(like.dtype).numpy()
        return found
    return torch.zeros(shape, dtype=like.dtype).numpy()


def _size(path: Path, companions: Sequence[str]) -> int:
    """Bytes of a file, the files of a folder, or a file with others of the same stem."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    files = [path, *(path.with_suffix(suffix) for suffix in companions)]
    return sum(file.stat().st_size for file in files if file.exists())
