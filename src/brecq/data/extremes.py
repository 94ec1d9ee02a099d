"""Samples unlike the others: one value of 1e30 takes the range of an activation from all that are of use."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from brecq.data.dataset import Dataset, describe_sample
from brecq.forward import Inputs, even_slices, tensors

LIMIT = 256
"""How many times the typical largest value of a sample is too much: on a grid of 8 bits that reaches so far, half of
the samples are one code. In trained networks for pictures it is at most 4 (32 samples, inputs and activations)."""


def unlike(inputs: Inputs, data: Dataset) -> str | None:
    """What to say of a sample whose largest value lies far beyond the others', `None` where there is none.

    Only magnitudes of whole samples are compared: values of very different size side by side, and zeros in most
    samples, are as a network may have them.

    Args:
        inputs: of the network or a part of it, each [N, ...]. data: that they come from, which names samples.
    """
    names = list(inputs) if isinstance(inputs, Mapping) else [str(place) for place in range(len(inputs))]
    for name, value in zip(names, tensors(inputs), strict=True):
        if not value.is_floating_point():
            continue
        largest = torch.cat([_largest(value[rows]) for rows in even_slices(len(value))])
        some = largest[largest > 0]
        typical = some.median() if len(some) else largest.new_zeros(())
        count = int((largest > LIMIT * typical).sum())
        if count:
            sample, most = int(largest.argmax()), float(largest.max())
            where = f" of input {name}" if len(names) > 1 else ""
            more = f", and {count - 1} more samples do so" if count > 1 else ""
            return (
                f"{describe_sample(data, sample)}{where} reaches {most:.3g}, where samples typically reach "
                f"{float(typical):.3g}{more}: no range of 8 bits holds both, and the others may be lost; "
                "remove the sample, or repair the data"
            )
    return None


def _largest(rows: Tensor) -> Tensor:
    """The largest magnitude of each sample, float64 [N]."""
    values = rows.reshape(len(rows), -1) if rows.numel() else rows.new_zeros(len(rows), 1)
    return values.abs().amax(1).double()
