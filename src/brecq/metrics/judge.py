"""A metric applied to a network and to the one that it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from brecq.errors import BrecqError, DataError
from brecq.metrics.base import Metric, Task, describe, plain, stacked
from brecq.metrics.custom import Function, as_metric
from brecq.metrics.names import task_metric


@dataclass(frozen=True)
class Verdict:
    """See `brecq.Evaluation`, whose attributes have the same names."""

    task: str
    metrics: dict[str, float] = field(default_factory=dict)
    reference_metrics: dict[str, float] = field(default_factory=dict)
    against_reference: bool = False
    flips: float | None = None
    notes: list[str] = field(default_factory=list)


class Judge:
    """Applies copies of `metric` to both networks, batch after batch.

    Raises:
        ConfigError: `metric` is neither the name of a task nor what `as_metric` takes.
    """

    def __init__(self, metric: Metric | Callable[..., Any] | str) -> None:
        made = task_metric(metric) if isinstance(metric, str) else as_metric(metric, "metric")
        self.name = getattr(made, "name", None) or type(made).__name__
        self.model, self.reference = _fresh(made), _fresh(made)
        self._targets: bool | None = None
        self._compared = False
        self._missing = self._values = 0

    def add(self, found: Any, expected: Any, targets: Any, samples: int) -> None:
        """A batch of so many samples: outputs of the network and of the reference (`None` without one), and what is
        right, if known.

        Raises:
            DataError: neither is known; the metric cannot be computed of them.
        """
        if targets is None and expected is None:
            raise DataError(
                f"the data does not say what is right, and there is no reference to compare with: {self.name} needs "
                "targets, or the float network (reference=...)"
            )
        if self._targets not in (None, targets is not None):
            raise DataError("some of the data has targets, some has not; give all or none")
        self._targets = targets is not None
        if not isinstance(self.model, Task):
            targets = stacked(targets)
            self._count_missing(targets)
        if targets is not None:
            self._update(self.model, found, targets, samples)
            if expected is not None:
                self._update(self.reference, expected, targets, samples)
        else:
            self._against_reference(found, expected, samples)
        if expected is not None and isinstance(self.model, Task):
            self.model.compare(found, expected, targets)
            self._compared = True

    def _against_reference(self, found: Any, expected: Any, samples: int) -> None:
        if isinstance(self.model, Task):
            self._update(self.model, found, self.model.targets_of(expected), samples)
        elif isinstance(self.model, Function):
            self._update(self.model, found, expected, samples)
        else:
            raise DataError(f"the data has no targets, which {self.name} needs; give data that has")

    def _count_missing(self, targets: Any) -> None:
        for value in pytree.tree_leaves(targets):
            if isinstance(value, (Tensor, np.ndarray, float)):
                found = torch.as_tensor(value)
                self._missing += int(found.isnan().sum())
                self._values += found.numel()

    def _notes(self) -> list[str]:
        if isinstance(self.model, Task):
            return self.model.notes()
        told = f"{self._missing} of {self._values} target values are NaN, and {self.name} got them as they are"
        return [f"{told} (--task regression leaves them out)"] if self._missing else []

    def _update(self, metric: Metric, outputs: Any, targets: Any, samples: int) -> None:
        try:
            if isinstance(metric, Function):  # of the float network's outputs nobody can tell how many they are
                metric.update(outputs, targets, samples)
            else:
                metric.update(outputs, targets)
        except (BrecqError, MemoryError):
            raise
        except Exception as error:  # whatever a library or a user's own code raises
            raise DataError(
                f"the metric {self.name} fails: {type(error).__name__}: {error}; the outputs are {describe(outputs)}, "
                f"the targets {describe(targets)}"
            ) from error

    def verdict(self, with_reference: bool) -> Verdict:
        """What came out."""
        return Verdict(
            self.name,
            plain(self.model.compute(), self.name),
            plain(self.reference.compute(), self.name) if with_reference and self._targets else {},
            not self._targets,
            self.model.flips() if self._compared and isinstance(self.model, Task) else None,
            self._notes(),
        )


def _fresh(metric: Metric) -> Metric:
    copied = copy.deepcopy(metric)
    reset = getattr(copied, "reset", None)
    if callable(reset):  # metrics of torchmetrics, used before
        reset()
    return copied
