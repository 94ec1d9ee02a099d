"""Samples of the data whose values lie far beyond the others'."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from brecq.data.dataset import Dataset, describe_sample
from brecq.forward import Inputs, even_slices, tensors
from brecq.outliers import outlier


def unlike(inputs: Inputs, data: Dataset) -> str | None:
    """What to say of a sample whose largest value lies far beyond the others', `None` where there is none.

    Only magnitudes of whole samples are compared: values of very different size side by side are as a network may have
    them.

    Args:
        inputs: of the network or a part of it, each [N, ...]. data: that they come from, which names samples.
    """
    names = list(inputs) if isinstance(inputs, Mapping) else [str(place) for place in range(len(inputs))]
    for name, value in zip(names, tensors(inputs), strict=True):
        if not value.is_floating_point():
            continue
        found = outlier(torch.cat([_largest(value[rows]) for rows in even_slices(len(value))]))
        if found is not None:
            where = f" of input {name}" if len(names) > 1 else ""
            return f"{describe_sample(data, found.sample)}{where} {found.describe()}"
    return None


def _largest(rows: Tensor) -> Tensor:
    """The largest magnitude of each sample, float64 [N]."""
    values = rows.reshape(len(rows), -1) if rows.numel() else rows.new_zeros(len(rows), 1)
    return values.abs().amax(1).double()
