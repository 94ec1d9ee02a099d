"""How far an exported file's layers are from the float network, for the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from brecq.page.record import Exported
from brecq.report import sqnr


def exported(
    file: str, runtime: str, samples: int, tensors: Iterable[tuple[str, float, float]], layers: Sequence[str]
) -> Exported:
    """What was found of a file, by layer, and of all its outputs together.

    Args:
        tensors: name, power of the float network's values, power of the differences. A layer's output is named after
            the layer and its operator (`stem.conv.conv2d`), one of the network's `output`, or `output NAME`.
    """
    known = set(layers)
    found: dict[str, float] = {}
    outputs = [0.0, 0.0]
    for name, signal, noise in tensors:
        layer = name.rpartition(".")[0]
        if name == "output" or name.startswith("output "):
            outputs = [outputs[0] + signal, outputs[1] + noise]
        elif layer in known:
            found[layer] = sqnr(signal, noise)
    finite = {layer: value for layer, value in found.items() if math.isfinite(value)}
    whole = sqnr(*outputs)
    return Exported(file, runtime, samples, finite, whole if math.isfinite(whole) else None)
