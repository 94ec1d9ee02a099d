"""Where the class scores are in a network's output: which of its tensors, and along which axis.

A network that returns one tensor [N, classes], or names one `logits` or `out`, is taken for a classifier. Of any other
nobody can know: several unnamed outputs may be a detector's, a map [N, C, H, W] may hold pixels, features or classes.
It has none until somebody says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

KEYS = ("logits", "out")


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The tensors of an output by name: keys of dictionaries, places in tuples, joined by dots; one tensor is ``."""
    return dict(_leaves(output, ""))


def classifier(outputs: Mapping[str, Tensor], given: int | None = None) -> str | None:
    """The name of the output that holds class scores, `None` if there is none, or no telling which.

    Args:
        given: the axis of classes, where somebody said it: then a single output of any shape holds scores.
    """
    names = [name for name in KEYS if name in outputs]
    names += [name for name, value in outputs.items() if len(outputs) == 1 and (given is not None or value.ndim == 2)]
    return next((name for name in names if given is not None or class_axis(outputs[name]) is not None), None)


def scores(output: Any) -> Tensor | None:
    """The class scores in a network's output."""
    outputs = named_outputs(output)
    name = classifier(outputs)
    return None if name is None else outputs[name]


def class_axis(scores: Tensor, given: int | None = None) -> int | None:
    """The axis along which scores are those of classes, not negative; `None` without class scores.

    It is the one `given`; else axis 1 of [N, classes] and of maps [N, classes, H, W] and [N, classes, D, H, W], and
    the last one of sequences [N, tokens, classes]. Nothing in a shape tells these from other layouts (a map over one
    dimension, [N, classes, L]): such networks need to be told.

    Raises:
        ValueError: there is no such axis, or it is the batch.
    """
    if given is not None:
        axis = given + scores.ndim if given < 0 else given
        if not 0 < axis < scores.ndim:
            raise ValueError(f"class_axis is {given}, and the scores have shape {list(scores.shape)}")
        return axis if scores.shape[axis] > 1 else None
    if scores.ndim < 2:
        return None
    axis = 2 if scores.ndim == 3 else 1
    return axis if scores.shape[axis] > 1 else None


def describe(scores: Tensor, axis: int) -> str:
    """What is compared: `largest of 21 along axis 1, 4096 positions a sample`; empty for [N, classes]."""
    if scores.ndim == 2:
        return ""
    positions = scores[0].numel() // scores.shape[axis] if len(scores) else 0
    return f"largest of {scores.shape[axis]} along axis {axis}, {positions} positions a sample"


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
        return
    if isinstance(value, Mapping):
        parts = value.items()
    elif hasattr(value, "_asdict"):
        parts = value._asdict().items()
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}.items()
    elif isinstance(value, (tuple, list)):
        parts = dict(enumerate(value)).items()
    else:
        return
    for key, part in parts:
        yield from _leaves(part, f"{name}.{key}" if name else str(key))
