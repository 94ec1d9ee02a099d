"""`benchmark`: sizes, latencies, and the float network beside the quantized one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import brecq
from brecq.deploy.benchmark import Benchmark, Latency
from brecq.deploy.floats import float_graph
from brecq.deploy.sizes import ideal_bytes
from brecq.errors import ConfigError


def test_sizes_and_latencies(exported: Callable[..., Any]) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    case = exported("ConcatNet")
    found = brecq.benchmark(case.result, case.file, batches=(1, 4), runs=4)
    assert found.size == case.file.stat().st_size
    assert found.ideal == ideal_bytes(case.result) < found.size < found.float_size
    assert [(latency.batch, latency.runs) for latency in found.quantized] == [(1, 4), (4, 4)]
    assert [latency.batch for latency in found.floating] == [1, 4]
    assert all(0 < latency.shortest <= latency.median for latency in (*found.quantized, *found.floating))
    speedup = found.speedup(4)
    assert speedup == found.floating[1].cpu / found.quantized[1].cpu  # of processor time, on one thread
    several = dataclasses.replace(found, threads=2)
    assert several.speedup(4) == found.floating[1].shortest / found.quantized[1].shortest
    assert found.speedup(2) is None
    assert found.kernels is not None
    assert (found.kernels.integer, found.kernels.floating) == (5, 0)


def test_what_is_slower_than_float_is_said() -> None:
    def latency(batch: int, cpu: float) -> Latency:
        return Latency(batch, cpu, cpu, cpu, 1)

    floating, quantized = (latency(1, 2.0), latency(16, 30.0)), (latency(1, 3.0), latency(16, 10.0))
    assert Benchmark("r", 1, 1, 1, 1, quantized, floating, None).slower() == [1]
    assert Benchmark("r", 1, 1, 1, 1, quantized, (), None).slower() == []


@pytest.mark.parametrize(
    ("format", "file", "changes"),
    [
        ("tensorrt", "m.onnx", {"activation_scheme": "signed", "weight_scheme": "symmetric"}),
        ("qualcomm", "m.onnx", {}),
        ("web", "m", {}),
    ],
)
def test_times_of_what_stands_for_another_machine_are_not_taken(
    quantized: Callable[..., Any], tmp_path: Path, format: str, file: str, changes: dict[str, str]
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    result = quantized("ConcatNet", 8, 8, **changes)
    path = brecq.export(result, tmp_path / file, format).path
    with pytest.raises(ConfigError, match="says nothing of the time"):
        brecq.benchmark(result, path, format=format)


@pytest.mark.parametrize("wrong", [{"batches": (0,)}, {"runs": 0}, {"threads": 0}])
def test_bad_numbers_are_named(exported: Callable[..., Any], wrong: dict[str, Any]) -> None:
    case = exported("ConcatNet")
    with pytest.raises(ConfigError, match="is 0; it must be"):
        brecq.benchmark(case.result, case.file, **wrong)


def test_the_float_network_is_the_quantized_one_without_quantizers(
    networks: ModuleType, quantized: Callable[..., Any]
) -> None:
    result, model = quantized("UNet", 8, 8), networks.build(networks.UNet)
    inputs = networks.inputs(model, 6, seed=5)
    with torch.no_grad():
        expected, found = model(*inputs), float_graph(result)(*inputs)
    assert (found - expected).abs().max() < 0.05 * (expected.max() - expected.min())
