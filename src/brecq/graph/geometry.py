"""What a weighted operator of a graph does to its input, for `brecq.quant.compensate`."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from brecq.graph import ops
from brecq.graph.shapes import numel_of_sample
from brecq.quant.compensate import Geometry


def geometry_of(layer: Node) -> Geometry:
    """The geometry of a weighted operator."""
    values: dict[str, Any] = {a.name: a.default_value for a in layer.target._schema.arguments}  # type: ignore[union-attr]
    values |= dict(zip(values, layer.args, strict=False)) | layer.kwargs
    kernel = values["weight"].meta["val"].shape[2:]
    if ops.kind(layer) == "linear":
        return Geometry.linear()
    if str(ops.kind(layer)).startswith("conv_transpose"):
        names = ("stride", "padding", "output_padding", "groups", "dilation")
        return Geometry.conv_transpose(kernel, *(values[name] for name in names))
    return Geometry.conv(kernel, *(values[name] for name in ("stride", "padding", "dilation", "groups")))


def patches_of_sample(layer: Node, samples: int) -> int:
    """How many patches of its input a weighted operator multiplies its weight with, for each sample; 0 where they are
    the same for all.

    Args:
        samples: the graph was captured with, see `brecq.graph.shapes.captured_samples`.
    """
    value, kind = layer.meta["val"], ops.kind(layer)
    channels = value.shape[-1] if kind == "linear" else value.shape[-1 - len(geometry_of(layer).kernel)]
    return numel_of_sample(value, samples) // int(channels)
