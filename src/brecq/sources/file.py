"""Models that a function in a Python file builds."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brecq.data.preprocessing import Preprocessing
from brecq.errors import SourceError
from brecq.sources.source import Source, unknown_name
from brecq.sources.torchvision_models import as_detector, is_detector
from brecq.sources.weights import load_weights, read_weights


def load_file_source(path: Path, attribute: str, spec: str, weights: Path | None, trust_pickle: bool) -> Source:
    """Run `path`, call `attribute` in it without arguments and take the model that it returns.

    It may return a Module or (Module, Preprocessing); the Module may have an attribute `example_inputs`, a tensor or
    a tuple of tensors. `attribute` may also be a Module.
    """
    target = load_attribute(path, attribute, spec)
    with _importable(path.resolve().parent):
        built = _call(target, attribute, spec)
    model, preprocessing = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module) or not isinstance(preprocessing, (Preprocessing, type(None))):
        what = tuple(type(part).__name__ for part in built) if isinstance(built, tuple) else type(built).__name__
        raise SourceError(f"{spec} returned {what}; return a torch.nn.Module, or (Module, brecq.data.Preprocessing)")
    if weights is not None:
        load_weights(model, read_weights(weights, trust_pickle=trust_pickle), weights)
    name = f"{path.name}:{attribute}"
    source = Source(name, model.eval(), preprocessing, _example(model, preprocessing, spec), spec)
    return as_detector(source) if is_detector(model) else source


def load_attribute(path: Path, attribute: str, spec: str, what: str = "model") -> Any:
    """Run a Python file and take what `attribute` names in it; the file may import its neighbours.

    Raises:
        SourceError: there is no such file or name, or running it fails.
    """
    if not os.path.isfile(path):
        raise SourceError(f"{spec}: there is no file {path}; check the path")
    with _importable(path.resolve().parent):
        module = _execute(path, spec)
    target = getattr(module, attribute, None)
    if target is None:
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise unknown_name(spec, attribute, names, str(path), what)
    return target


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the file import its neighbours, as it can when it is run."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _execute(path: Path, spec: str) -> Any:
    # registered under a name of its own: pickle and dataclasses look classes up in sys.modules
    name = f"brecq_source_{path.stem}"
    loader = importlib.util.spec_from_file_location(name, path)
    if loader is None or loader.loader is None:
        raise SourceError(f"{spec}: {path} is not a Python file; give file.py:callable")
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module
    try:
        loader.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise SourceError(f"{spec}: running {path} failed: {type(error).__name__}: {error}") from error
    return module


def _call(target: Any, attribute: str, spec: str) -> Any:
    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise SourceError(f"{spec}: {attribute} is a {type(target).__name__}; name a function that returns the model")
    try:
        return target()
    except Exception as error:
        raise SourceError(
            f"{spec}: calling {attribute}() failed: {type(error).__name__}: {error}; it is called without arguments"
        ) from error


def _example(model: nn.Module, preprocessing: Preprocessing | None, spec: str) -> tuple[Tensor, ...]:
    inputs = getattr(model, "example_inputs", None)
    if inputs is None:
        return () if preprocessing is None else (preprocessing.example(),)
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if not inputs or not all(isinstance(x, Tensor) and x.ndim for x in inputs):
        raise SourceError(
            f"{spec}: example_inputs must be a tensor or a tuple of tensors, each with a batch dimension"
        )
    return tuple(batch_of_two(x) for x in inputs)


def batch_of_two(tensor: Tensor) -> Tensor:
    """The first two samples, or one sample twice."""
    return tensor[:2] if len(tensor) >= 2 else torch.cat([tensor, tensor])
