"""Network inputs in memory, with or without labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from brecq.errors import DataError
from brecq.forward import Inputs, even_slices


@dataclass(frozen=True)
class Dataset:
    """Inputs ready for the network, on the CPU.

    Attributes:
        inputs: one tensor per network input, each [N, ...], samples in the same order.
        labels: class indices, int64 [N], or `None`.
        targets: what is right where it is no class index: a tensor [N, ...] or a list of N, such as masks, pictures
            or dictionaries of boxes, as the metric of a task takes them (`brecq.metrics`); `None` without.
        names: one per sample (file names), or empty.
        skipped: what could not be read and why, `NAME: REASON`.
        keys: names of the parameters of the network's `forward` that the inputs go to; empty: by position.
        origin: what of the data went where, in words; empty where there was nothing to decide.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None
    names: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    keys: tuple[str, ...] = ()
    origin: str = ""
    targets: Tensor | Sequence[Any] | None = None

    def __post_init__(self) -> None:
        if not self.inputs or not all(isinstance(x, Tensor) for x in self.inputs):
            raise DataError("a dataset needs at least one input tensor of shape [N, ...]")
        single = [self.keys[i] if self.keys else f"input {i}" for i, x in enumerate(self.inputs) if not x.ndim]
        if single:
            raise DataError(
                f"{single[0]} is a single number (shape []), where inputs have samples in front ([N, ...]); "
                "repeat it for all samples, or fix it in the network's forward"
            )
        if self.keys and len(self.keys) != len(self.inputs):
            raise DataError(f"there are {len(self.inputs)} inputs and {len(self.keys)} keys; give one of each")
        counts = {"inputs": len(self.inputs[0])}
        counts |= {f"input {i}": len(x) for i, x in enumerate(self.inputs[1:], 1)}
        if self.labels is not None:
            if self.labels.ndim != 1 or self.labels.is_floating_point() or self.labels.dtype == torch.bool:
                raise DataError(
                    f"labels are {self.labels.dtype} {list(self.labels.shape)}; "
                    "give one class index a sample, int64 [N], or leave them out"
                )
            object.__setattr__(self, "labels", self.labels.long())
            counts["labels"] = len(self.labels)
        if self.targets is not None:
            counts["targets"] = len(self.targets)
        if self.names:
            counts["names"] = len(self.names)
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise DataError(f"the parts of the data differ in length: {found}; give one of each per sample")
        if not len(self):
            raise DataError("the data holds no samples; give at least one")

    def __len__(self) -> int:
        return len(self.inputs[0])

    def subset(self, index: Tensor | slice) -> Dataset:
        """The samples at `index` (int64 [M] or a slice), without the list of skipped files."""
        positions = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        return Dataset(
            tuple(x[index] for x in self.inputs),
            None if self.labels is None else self.labels[index],
            [self.names[i] for i in positions] if self.names else [],
            keys=self.keys,
            origin=self.origin,
            targets=_rows(self.targets, positions),
        )

    @property
    def answers(self) -> Tensor | Sequence[Any] | None:
        """What is right: the targets, or the labels."""
        return self.labels if self.targets is None else self.targets

    @property
    def labelled(self) -> bool:
        """Whether it says what is right."""
        return self.answers is not None

    @property
    def left_out(self) -> str:
        """What could not be read, in words; empty where all could."""
        return unreadable(self.skipped)

    def arguments(self, inputs: Sequence[Tensor] | None = None) -> Inputs:
        """What the network is called with: its inputs (by default all samples) by name or by position."""
        inputs = self.inputs if inputs is None else inputs
        return dict(zip(self.keys, inputs, strict=True)) if self.keys else tuple(inputs)

    def calls(self, size: int) -> Iterator[Inputs]:
        """What the network is called with, at most `size` samples at a time."""
        return (self.arguments(inputs) for inputs, _ in self.batches(size))

    def batches(self, size: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        """Inputs and labels in order, in nearly equal batches of at most `size`."""
        for rows in even_slices(len(self), size):
            yield tuple(x[rows] for x in self.inputs), None if self.labels is None else self.labels[rows]

    def digest(self) -> str:
        """SHA-256 over dtypes, shapes and bytes of inputs and labels: equal data, equal digest, whatever the names."""
        sha = hashlib.sha256()
        sha.update(",".join(self.keys).encode())
        for tensor in (*self.inputs, *(() if self.labels is None else (self.labels,))):
            sha.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
            for row in tensor.split(64):
                sha.update(row.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return sha.hexdigest()


def unreadable(skipped: Sequence[str]) -> str:
    """`1 file cannot be read and is left out: NAME: REASON`; empty without any."""
    if not skipped:
        return ""
    one = len(skipped) == 1
    named = "; ".join([*skipped[:5], *(["..."] if len(skipped) > 5 else [])])
    return f"{len(skipped)} file{'' if one else 's'} cannot be read and {'is' if one else 'are'} left out: {named}"


def _rows(targets: Tensor | Sequence[Any] | None, positions: Sequence[int]) -> Tensor | Sequence[Any] | None:
    if targets is None or isinstance(targets, Tensor):
        return targets if targets is None else targets[list(positions)]
    return [targets[position] for position in positions]


def check(dataset: Dataset, like: tuple[Tensor, ...] | None = None) -> None:
    """Raise `DataError` for NaN or infinite inputs, and shapes unlike the network's.

    Args:
        like: inputs that the network takes; count and dimensions after the first must agree.
    """
    if like is not None:
        expected, found = ([list(x.shape[1:]) for x in tensors] for tensors in (like, dataset.inputs))
        if expected != found:
            raise DataError(
                f"the samples have shape {_shapes(found)}, the network takes {_shapes(expected)}; "
                "change the preprocessing (size), or the data"
            )
    for position, tensor in enumerate(dataset.inputs):
        if not tensor.is_floating_point():
            continue
        for part in even_slices(len(tensor)):
            rows = tensor[part]
            finite = torch.isfinite(rows).flatten(1).all(1) if rows.ndim > 1 else torch.isfinite(rows)
            if not finite.all():
                bad = part.start + int((~finite).nonzero()[0])
                where = f" of input {position}" if len(dataset.inputs) > 1 else ""
                raise DataError(
                    f"{describe_sample(dataset, bad)}{where} holds NaN or infinite values; "
                    "remove it or repair the data"
                )


def describe_sample(dataset: Dataset, index: int) -> str:
    """`sample 7`, with its name where it has one."""
    return f"sample {index} ({dataset.names[index]})" if dataset.names else f"sample {index}"


def _shapes(shapes: list[list[int]]) -> str:
    return ", ".join(str(shape) for shape in shapes)
