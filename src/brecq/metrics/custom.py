"""Metrics of one's own: `file.py:name`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brecq.errors import ConfigError, DataError
from brecq.metrics.base import Metric, by_name, describe, plain
from brecq.sources.file import load_attribute

_WANTED = "give a function of outputs and targets, or an object with update() and compute()"


class Function:
    """A function of a batch's outputs and targets, averaged over samples.

    Args:
        function: returns a number, the numbers of the N samples (a tensor or array [N]), or either by name. Without
            targets in the data it is given the outputs of the float network in their place.
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        self._sums: dict[str, float] = {}
        self._samples = 0

    def update(self, outputs: Any, targets: Any, /, samples: int | None = None) -> None:
        """Take a batch; `samples`: how many those are, where the targets are no list or tensor of so many."""
        try:
            found = self.function(outputs, targets)
        except Exception as error:  # whatever a user's own code raises
            raise DataError(
                f"{self.name}(outputs, targets) fails: {type(error).__name__}: {error}; outputs are "
                f"{describe(outputs)}, targets {describe(targets)}"
            ) from error
        count = len(targets) if samples is None else samples
        means = {key: _mean(value, count) for key, value in by_name(found, self.name).items()}
        for name, value in plain(means, self.name).items():
            self._sums[name] = self._sums.get(name, 0.0) + value * count
        self._samples += count

    def compute(self) -> dict[str, float]:
        return {name: value / self._samples for name, value in self._sums.items()}


def _mean(value: Any, samples: int) -> Any:
    """The mean of one number a sample; anything else as it is."""
    if not isinstance(value, (Tensor, np.ndarray)) or value.shape != (samples,):
        return value
    return torch.as_tensor(value).double().mean()


def as_metric(given: Any, what: str) -> Metric:
    """A metric out of one, of a class (or function without parameters) that makes one, or of a function of outputs
    and targets (`Function`). `what` it is, for errors.

    Raises:
        ConfigError: it is something else.
    """
    if _is_metric(given):
        return given
    if not callable(given):
        raise ConfigError(f"{what} is a {type(given).__name__}; {_WANTED}")
    if not inspect.isclass(given) and _takes_both(given, what):
        return Function(given)
    try:
        made = given()
    except Exception as error:  # whatever a user's own code raises
        raise ConfigError(f"{what}: it is called without arguments and fails: {error}") from error
    if not _is_metric(made):
        raise ConfigError(f"{what} makes a {type(made).__name__}; it needs update() and compute()")
    return made


def load_metric(spec: str) -> Metric:
    """The metric `file.py:name`, see `as_metric`.

    Raises:
        ConfigError: there is no such file or name, or it is something else.
    """
    return as_metric(load_callable("--metric", spec), f"--metric {spec}")


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


def _takes_both(function: Any, what: str) -> bool:
    """True for a function of outputs and targets, False for one without parameters."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtins do not say
        return True
    try:
        signature.bind("outputs", "targets")
    except TypeError:
        if signature.parameters:
            raise ConfigError(f"{what} is a function of {signature}; {_WANTED}") from None
    return bool(signature.parameters)
