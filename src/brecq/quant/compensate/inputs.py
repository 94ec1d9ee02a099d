"""A layer's inputs in either form; see `form.py`."""

from __future__ import annotations

from collections.abc import Sequence

from brecq.quant.compensate.moments import Moments
from brecq.quant.compensate.samples import Samples

Inputs = Moments | Samples


def together(parts: Sequence[Inputs]) -> Inputs:
    """Several sets of inputs, all in one form, as one."""
    if len(parts) == 1:
        return parts[0]
    moments = [one for one in parts if isinstance(one, Moments)]
    return Moments.together(moments) if moments else Samples.together([o for o in parts if isinstance(o, Samples)])
