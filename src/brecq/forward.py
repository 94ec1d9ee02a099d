"""Running networks over many samples: in eval mode, batch by batch, inputs by position or by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from brecq.errors import DataError
from brecq.unchanged import unchanged

BATCH = 64
"""Samples that a network or block is run on at a time, where nobody asked for another number; fixed, so that results
do not depend on anything else."""


def even_slices(count: int, size: int = BATCH) -> Iterator[slice]:
    """Cut `count` samples into as few slices of at most `size` as possible, their lengths differing by at most one.

    A remainder of one is avoided that way: exported programs are often specialized to batches of two or more.

    Raises:
        DataError: `size` is below 1.
    """
    if size < 1:
        raise DataError(f"the batch size is {size}; it must be at least 1")
    parts = -(-count // size)
    for part in range(parts):
        yield slice(part * count // parts, (part + 1) * count // parts)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """The models in eval mode; afterwards they are as they were, also where their `forward` counts or averages.

    The flags are set one by one: exported programs refuse `eval()` (their mode is fixed), and a model's own `train()`
    may do more than that, such as merging weights, which nothing here would undo.
    """
    with unchanged(*models):
        for model in models:
            for module in model.modules():
                module.training = False
        yield


Inputs = Sequence[Tensor] | Mapping[str, Tensor]
"""What a network is called with: tensors by position, or by the names of its `forward`'s parameters."""


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The network's output. It is given copies: some write into their inputs."""
    if isinstance(inputs, Mapping):
        return model(**{name: value.clone() for name, value in inputs.items()})
    return model(*(value.clone() for value in inputs))


def tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """The input tensors in order."""
    return tuple(inputs.values() if isinstance(inputs, Mapping) else inputs)


def like(inputs: Inputs, values: Sequence[Tensor]) -> Inputs:
    """`values` in the place of the tensors of `inputs`."""
    return dict(zip(inputs, values, strict=True)) if isinstance(inputs, Mapping) else tuple(values)


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside `torch.compile`, `DataParallel` and `DistributedDataParallel`."""
    while True:
        compiled = getattr(model, "_orig_mod", None)
        if isinstance(compiled, nn.Module):
            model = compiled
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model
