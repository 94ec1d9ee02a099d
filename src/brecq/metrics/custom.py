"""Metrics of one's own: `file.py:name`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from brecq.errors import ConfigError, DataError
from brecq.metrics.base import Metric, describe, plain
from brecq.sources.file import load_attribute


class Function:
    """A function of a batch's outputs and targets, averaged over samples.

    Args:
        function: returns a number, or numbers by name. Without targets in the data it is given the outputs of the
            float network in their place.
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        self._sums: dict[str, float] = {}
        self._samples = 0

    def update(self, outputs: Any, targets: Any, /) -> None:
        try:
            found = self.function(outputs, targets)
        except Exception as error:  # whatever a user's own code raises
            raise DataError(
                f"{self.name}(outputs, targets) fails: {type(error).__name__}: {error}; outputs are "
                f"{describe(outputs)}, targets {describe(targets)}"
            ) from error
        count = len(targets)
        for name, value in plain(found, self.name).items():
            self._sums[name] = self._sums.get(name, 0.0) + value * count
        self._samples += count

    def compute(self) -> dict[str, float]:
        return {name: value / self._samples for name, value in self._sums.items()}


def load_metric(spec: str) -> Metric:
    """The metric `file.py:name`: a function of outputs and targets, an object with `update` and `compute`, or a class
    (or function without parameters) that makes one.

    Raises:
        ConfigError: there is no such file or name, or it is something else.
    """
    found = load_callable("--metric", spec)
    if inspect.isclass(found) or (callable(found) and not _parameters(found) and not _is_metric(found)):
        try:
            found = found()
        except Exception as error:  # whatever a user's own code raises
            raise ConfigError(f"--metric {spec}: it is called without arguments and fails: {error}") from error
        if not _is_metric(found):
            raise ConfigError(f"--metric {spec} makes a {type(found).__name__}; it needs update() and compute()")
    return found if _is_metric(found) else Function(found)


def load_callable(option: str, spec: str) -> Any:
    """What `file.py:name` names; the file is run.

    Raises:
        ConfigError: there is no such file, no such name in it, or it cannot be called.
    """
    path, colon, name = spec.rpartition(":")
    if not colon or not path.endswith(".py") or not name:
        raise ConfigError(f"{option} is {spec!r}; write file.py:name")
    found = load_attribute(Path(path), name, f"{option} {spec}", "function")
    if not callable(found) and not _is_metric(found):
        raise ConfigError(f"{option} {spec} is a {type(found).__name__}; name a function")
    return found


def _is_metric(value: Any) -> bool:
    return not inspect.isclass(value) and isinstance(value, Metric)


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {"outputs": None, "targets": None}  # type: ignore[dict-item]
