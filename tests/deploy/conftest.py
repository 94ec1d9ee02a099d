"""Quantized networks and their exported files, each made once a session: capturing and exporting take seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

import brecq
from brecq import QuantConfig, QuantResult

Quantized = Callable[..., QuantResult]

SETTINGS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "ResNet": (4, 8, {}),
    "MobileNet": (2, 4, {}),
    "CifarResNet": (3, 8, {"first_last": None}),
    "ConcatNet": (5, 4, {"placement": "input"}),
    "SENet": (6, 8, {}),
    "FPN": (7, 6, {"activation_scheme": "symmetric"}),
    "UNet": (8, 8, {}),
    "ViT": (4, 8, {}),
}
"""Networks of `tests/networks.py`, and how each is quantized: together they have every width and operator."""


@dataclass(frozen=True)
class Case:
    """A quantized network, its ONNX file, and inputs."""

    result: QuantResult
    file: Path
    inputs: tuple[Tensor, ...]


@pytest.fixture(scope="session")
def quantized(networks: ModuleType) -> Quantized:
    """`quantized("ResNet", 4, 8, placement="input")`: rounded to nearest on random inputs."""

    @cache
    def get(name: str, weights: int = 4, activations: int = 8, **config: Any) -> QuantResult:
        kind = getattr(networks, name)
        model = networks.build(partial(kind, 1) if name == "CifarResNet" else kind)  # one block a stage is enough
        inputs = networks.inputs(model, 16)
        settings = QuantConfig(weights, activations, method="rtn", **config)
        return brecq.quantize(model, [inputs if len(inputs) > 1 else inputs[0]], settings)

    return get


@pytest.fixture(scope="session")
def exported(
    networks: ModuleType, quantized: Quantized, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Case]:
    """`exported("ResNet")`: quantized as `SETTINGS` says, written as ONNX."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    folder = tmp_path_factory.mktemp("onnx")

    @cache
    def get(name: str) -> Case:
        weights, activations, config = SETTINGS[name]
        result = quantized(name, weights, activations, **config)
        file = folder / f"{name}.onnx"
        brecq.export(result, file)
        return Case(result, file, networks.inputs(networks.build(getattr(networks, name)), 6, seed=5))

    return get
