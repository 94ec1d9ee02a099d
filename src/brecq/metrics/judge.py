"""A metric applied to a network and to the one that it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from brecq.errors import BrecqError, DataError
from brecq.labels import IGNORED, counted
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
        self._missing = self._values = self._counted = 0

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
            self._counted += _counted(self.model, targets)
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
        missing, values = _missing(targets)
        self._missing += missing
        self._values += values

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

    def check_counted(self) -> None:
        """Raise `DataError` where targets were given, and none of them counts."""
        if self._targets and not self._counted:
            raise DataError(nothing_counts(self.model))

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


def check_counted(metric: Metric | None, answers: Iterable[Any]) -> None:
    """Raise `DataError` unless some of the answers count, where there are any.

    Args:
        metric: `None` for labels of class scores. answers: of each part of the data, `None` of one without.
    """
    given = [each for each in answers if each is not None]
    if given and not any(_counted(metric, each) for each in given):
        raise DataError(nothing_counts(metric))


def nothing_counts(metric: Metric | None) -> str:
    """What to say of answers none of which counts."""
    own = "are NaN, all of them" if metric is not None else f"are {IGNORED}, all of them"
    what = metric.without if isinstance(metric, Task) else own
    return (
        f"the {'labels' if metric is None else 'targets'} {what}: nothing can be judged by them; repair them, or "
        "leave them out, and the network is compared with the float one"
    )


def _counted(metric: Metric | None, answers: Any) -> int:
    """How many answers say what is right. A metric of one's own may read them as it likes: of its numbers NaN alone
    counts as none."""
    if isinstance(metric, Task):
        return metric.counted(answers)
    if metric is None:
        return int(counted(answers).sum()) if isinstance(answers, Tensor) else len(answers)
    missing, values = _missing(answers)
    return values - missing if values else 1


def _missing(targets: Any) -> tuple[int, int]:
    """How many of the numbers in the targets are NaN, and how many there are."""
    leaves = [v for v in pytree.tree_leaves(targets) if isinstance(v, (Tensor, np.ndarray, float))]
    values = [torch.as_tensor(value) for value in leaves]
    return sum(int(value.isnan().sum()) for value in values), sum(value.numel() for value in values)


def _fresh(metric: Metric) -> Metric:
    copied = copy.deepcopy(metric)
    reset = getattr(copied, "reset", None)
    if callable(reset):  # metrics of torchmetrics, used before
        reset()
    return copied
