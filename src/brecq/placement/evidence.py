"""Whether calibration data says enough: ranges of activations that come from a handful of values are guesses."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from brecq.graph import ops
from brecq.graph.shapes import captured_samples, numel_of_sample
from brecq.placement import pt2e
from brecq.quant.fake_quant import ActivationFakeQuantize

VALUES = 200
"""From n values drawn alike, a new one falls outside their range with probability 2 / (n + 1): 1 % at 199."""

SAMPLES = 8
"""The same holds for the extremes of whole samples, whose values are not independent: 22 % at 8."""


def few_values(prepared: GraphModule, samples: int) -> str | None:
    """What to say where ranges of activations will come from few values, `None` where they do not.

    Args:
        samples: that ranges are taken from.
    """
    counts: dict[Node, int] = {}
    captured = captured_samples(prepared.graph)
    for place, module in pt2e.observers(prepared):
        source: Any = place.args[0]
        watched = isinstance(module, ActivationFakeQuantize) and module.enabled and not module.fixed
        if watched and source.op != "get_attr" and ops.is_tensor(source):
            counts[source] = samples * numel_of_sample(source.meta["val"], captured)
    counts = {node: count for node, count in counts.items() if count}  # a mean over the batch is no sample's value
    few = [node for node, count in counts.items() if count < VALUES]
    if few:
        node = min(few, key=lambda node: counts[node])
        several = f"{len(few)} tensors are calibrated on fewer than {VALUES} values: " if len(few) > 1 else ""
        return (
            f"{several}the range of {_named(node)} comes from {counts[node]} values ({samples} samples), and a "
            f"new value lies outside it with a probability of about {_outside(counts[node])}; give more samples"
        )
    if counts and samples < SAMPLES:
        return (
            f"the ranges of {len(counts)} tensors come from {samples} samples, and a new sample exceeds each with a "
            f"probability of about {_outside(samples)}; give more samples"
        )
    return None


def outliers(prepared: GraphModule) -> list[str]:
    """What to say of the first activation whose range one sample takes from the others, of those chosen here."""
    found = {
        _named(place.args[0]): module.outlier  # type: ignore[arg-type]
        for place, module in pt2e.observers(prepared)
        if isinstance(module, ActivationFakeQuantize) and module.outlier is not None
    }
    more = f" ({len(found)} activations have such samples)" if len(found) > 1 else ""
    return [f"{name} of sample {each.sample} {each.describe()}{more}" for name, each in list(found.items())[:1]]


def _outside(count: int) -> str:
    return f"{200 / (count + 1):.0f} %"


def _named(node: Node) -> str:
    path = ops.module_path(node)
    return f"the output of {ops.op_name(node)} in {path!r}" if path else f"{node.name!r}"
