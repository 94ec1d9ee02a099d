"""Tables that PyTorch makes anew for every export, although they depend on nothing but what is installed.

They take half the time in which a small network becomes an ONNX file. Where PyTorch has them no longer, or elsewhere,
nothing is changed.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from typing import Any

import torch


def keep() -> None:
    """Let this process make each of them once, and again where operators were registered since."""
    with suppress(ImportError, AttributeError):
        _keep_operators()
    with suppress(ImportError, AttributeError):
        _keep_translations()


def _registered() -> tuple[int, ...]:
    known = torch._C._dispatch_get_all_op_names()
    return len(known), len(torch.ops._dir)


def _keep_operators() -> None:
    """Of `ExportedProgram.run_decompositions`: operators that have a decomposition of their own."""
    name = "_collect_all_valid_cia_ops"
    make = getattr(importlib.import_module("torch._export.utils"), name)
    importlib.import_module("torch.export.decomp_utils")
    made: dict[tuple[int, ...], Any] = {}

    def collect() -> Any:
        key = _registered()
        if key not in made:
            made[key] = make()
        return made[key]

    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is make:
            setattr(module, name, collect)


def _keep_translations() -> None:
    """Of `torch.onnx.export`: functions that translate operators, and their signatures."""
    registry: Any = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    make = registry.from_torchlib.__func__
    made: dict[object, Any] = {}

    def from_torchlib(cls: Any, *version: object, **named: object) -> Any:
        key = (version, tuple(named.items()), _registered())
        if key not in made:
            made[key] = make(cls, *version, **named)
        copied = cls()
        vars(copied).update(vars(made[key]))
        copied.functions = {target: list(known) for target, known in made[key].functions.items()}
        return copied

    registry.from_torchlib = classmethod(from_torchlib)
