"""brecq: post-training quantization of PyTorch networks to 8, 4, 3 and 2 bits by block reconstruction."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from brecq.notice import without_kernel_preference
from brecq.version import __version__ as __version__

if TYPE_CHECKING:
    from brecq import metrics
    from brecq.composite import CompositeResult, load
    from brecq.config import LayerRule, QuantConfig, Recipe
    from brecq.data.dataset import Dataset
    from brecq.deploy.benchmark import Benchmark, benchmark
    from brecq.deploy.formats import Exported, export
    from brecq.deploy.simulate.model import IntegerModel, simulate
    from brecq.deploy.verify import Verification, verify
    from brecq.errors import (
        BrecqError,
        BudgetError,
        CaptureError,
        CheckpointError,
        ConfigError,
        DataError,
        ExportError,
        HardwareError,
        PartitionError,
        SourceError,
    )
    from brecq.evaluation import Evaluation, evaluate
    from brecq.legality import Legality, check
    from brecq.pipeline import quantize
    from brecq.precision.allocation import BitAllocation
    from brecq.precision.hardware import HardwareModel
    from brecq.precision.hardware.accelerator import Accelerator
    from brecq.precision.hardware.table import LatencyTable
    from brecq.precision.measure import measure_sensitivity
    from brecq.precision.search import pareto, search
    from brecq.precision.table import SensitivityTable
    from brecq.report import Report
    from brecq.result import QuantResult
    from brecq.steps.inspection import Inspection, inspect
    from brecq.synthesis.config import DistillConfig
    from brecq.synthesis.distill import distill

# Huge pages for large CPU tensors: fake-quantized activations are new memory in every step, and most of the time of
# a fused kernel goes into page faults without them (benchmarks/fake_quant.py). Read by PyTorch at its first use.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

without_kernel_preference()

_HOMES = {
    "BrecqError": "errors",
    "ConfigError": "errors",
    "SourceError": "errors",
    "DataError": "errors",
    "CaptureError": "errors",
    "PartitionError": "errors",
    "CheckpointError": "errors",
    "ExportError": "errors",
    "BudgetError": "errors",
    "HardwareError": "errors",
    "quantize": "pipeline",
    "inspect": "steps.inspection",
    "Inspection": "steps.inspection",
    "load": "composite",
    "CompositeResult": "composite",
    "check": "legality",
    "Legality": "legality",
    "QuantResult": "result",
    "evaluate": "evaluation",
    "Evaluation": "evaluation",
    "QuantConfig": "config",
    "Recipe": "config",
    "LayerRule": "config",
    "Report": "report",
    "distill": "synthesis.distill",
    "DistillConfig": "synthesis.config",
    "Dataset": "data.dataset",
    "export": "deploy.formats",
    "Exported": "deploy.formats",
    "simulate": "deploy.simulate.model",
    "IntegerModel": "deploy.simulate.model",
    "verify": "deploy.verify",
    "Verification": "deploy.verify",
    "benchmark": "deploy.benchmark",
    "Benchmark": "deploy.benchmark",
    "measure_sensitivity": "precision.measure",
    "SensitivityTable": "precision.table",
    "search": "precision.search",
    "pareto": "precision.search",
    "BitAllocation": "precision.allocation",
    "HardwareModel": "precision.hardware",
    "Accelerator": "precision.hardware.accelerator",
    "LatencyTable": "precision.hardware.table",
}

__all__ = [
    "Accelerator",
    "Benchmark",
    "BitAllocation",
    "BrecqError",
    "BudgetError",
    "CaptureError",
    "CheckpointError",
    "CompositeResult",
    "ConfigError",
    "DataError",
    "Dataset",
    "DistillConfig",
    "Evaluation",
    "ExportError",
    "Exported",
    "HardwareError",
    "HardwareModel",
    "Inspection",
    "IntegerModel",
    "LatencyTable",
    "LayerRule",
    "Legality",
    "PartitionError",
    "QuantConfig",
    "QuantResult",
    "Recipe",
    "Report",
    "SensitivityTable",
    "SourceError",
    "Verification",
    "benchmark",
    "check",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "load",
    "measure_sensitivity",
    "metrics",
    "pareto",
    "quantize",
    "search",
    "simulate",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `brecq --help` and `import brecq` need no torch."""
    if name == "metrics":
        return import_module("brecq.metrics")
    if name in _HOMES:
        value = getattr(import_module(f"brecq.{_HOMES[name]}"), name)
        globals()[name] = value  # also replaces the submodule of the same name
        return value
    raise AttributeError(f"module 'brecq' has no attribute {name!r}")
