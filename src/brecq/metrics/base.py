"""The protocol of metrics, and what the metrics of brecq's own tasks can do beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from textwrap import shorten
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from brecq import logits
from brecq.errors import DataError

Decode = Callable[[Any], Any]
"""From what a network returns to what a metric takes."""


@runtime_checkable
class Metric(Protocol):
    """Anything with these two methods can be given to `brecq.evaluate`; the metrics of torchmetrics have them."""

    def update(self, outputs: Any, targets: Any, /) -> None:
        """Take a batch: what the network returned, and what is right: a tensor [N, ...], or a list of N where these
        are no tensors of one shape (masks of several sizes, dictionaries of boxes)."""

    def compute(self) -> Any:
        """Numbers by name, the most telling first (or one number)."""


class Task(ABC):
    """A metric that also says what the network decides, so that two networks can be compared without labels.

    Attributes:
        name: of the task. decode: applied to what the network returns; `None` takes it as it is. without: of targets
            none of which counts, what they are.
    """

    name = ""
    without = "are empty"

    def __init__(self, decode: Decode | None = None) -> None:
        self.decode = decode
        self._changed = self._decisions = 0

    @abstractmethod
    def update(self, outputs: Any, targets: Any, /) -> None:
        """Take a batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Numbers by name, the most telling first."""

    @abstractmethod
    def targets_of(self, outputs: Any) -> Any:
        """What a network decided, as targets for another one: how near the quantized network is, without labels."""

    @abstractmethod
    def compare(self, outputs: Any, reference: Any, targets: Any = None) -> None:
        """Count the decisions of a batch, and how many of them are other ones than the reference's.

        Args:
            targets: of the batch, where there are any: they may say what does not count.
        """

    def counted(self, targets: Any) -> int:
        """How many of a batch's targets count; others say nothing of what is right, and are left out."""
        return len(targets)

    def flips(self) -> float | None:
        """Percent of decisions that changed; `None` where nothing is decided."""
        return 100 * self._changed / self._decisions if self._decisions else None

    def notes(self) -> list[str]:
        """What of the batches was measured otherwise than one might think, in words; usually nothing."""
        return []

    def _count(self, changed: int, decisions: int) -> None:
        self._changed += changed
        self._decisions += decisions

    def decoded(self, outputs: Any) -> Any:
        """The outputs after `decode`.

        Raises:
            DataError: it fails on them.
        """
        if self.decode is None:
            return outputs
        try:
            return self.decode(outputs)
        except Exception as error:  # whatever a user's own code raises
            name = getattr(self.decode, "__name__", "decode")
            raise DataError(f"{name}(outputs) fails: {type(error).__name__}: {error}; it gets what the network "
                            f"returns: {describe(outputs)}") from error  # fmt: skip


def one_tensor(outputs: Any, name: str | None, what: str) -> Tensor:
    """The tensor `name` of a network's outputs as float32; without a name the only one, or `logits`, `out`.

    Raises:
        DataError: there is none, or no telling which.
    """
    found = logits.named_outputs(outputs)
    if name is None:
        names = list(found) if len(found) == 1 else [key for key in logits.KEYS if key in found]
        name = names[0] if names else None
    if name is None or name not in found:
        asked = "" if name is None else f"no output {name!r}: "
        raise DataError(
            f"{asked}the network returns {describe(outputs)}; give a function that finds {what} (decode=..., "
            "--decode), or say which output holds that (output=..., brecq evaluate --output)"
        )
    return found[name].float()


def batched(targets: Any, what: str) -> Tensor:
    """Targets [N, ...] as a tensor: they are one, or a list of N tensors of one shape."""
    if isinstance(targets, Tensor):
        return targets
    try:
        return torch.stack([torch.as_tensor(target) for target in targets])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the targets are no {what}: {error}") from error


def stacked(targets: Any) -> Any:
    """Targets as a tensor [N, ...] where they are a list of N tensors of one shape and dtype; others as they are."""
    if not isinstance(targets, (list, tuple)) or not all(isinstance(target, Tensor) for target in targets):
        return targets
    return torch.stack(list(targets)) if len({(t.shape, t.dtype) for t in targets}) == 1 else targets


def describe(outputs: Any) -> str:
    """Names and shapes of what a network returned."""
    found = logits.named_outputs(outputs)
    listed = [f"{name} {list(value.shape)}".strip() for name, value in found.items()]
    text = ", ".join(listed[:6]) + (", …" if len(listed) > 6 else "")
    return text or type(outputs).__name__


def by_name(values: Any, name: str) -> Mapping[Any, Any]:
    """What a metric computed, by name: one thing has that of the metric."""
    return values if isinstance(values, Mapping) else {name: values}


def plain(values: Any, name: str) -> dict[str, float]:
    """What a metric computed, as numbers by name.

    Raises:
        DataError: it is neither a number nor numbers by name.
    """
    found: dict[str, float] = {}
    for key, value in by_name(values, name).items():
        try:
            found[str(key)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            shape = getattr(value, "shape", None)
            what = shorten(repr(value), 80) if shape is None else f"a {type(value).__name__} of shape {list(shape)}"
            raise DataError(
                f"the metric {name} computed {what}{'' if key == name else f' as {key}'}; give numbers, or numbers by "
                f"name; a function may give one for each sample of a batch, [N] ({error})"
            ) from error
    return found
