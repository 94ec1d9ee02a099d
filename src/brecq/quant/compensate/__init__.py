"""Compensated start: the weights' codes and steps, and the biases, in closed form, without any gradient."""

from __future__ import annotations

from brecq.quant.compensate.geometry import Geometry
from brecq.quant.compensate.inputs import Inputs, together
from brecq.quant.compensate.moments import Moments, MomentSum
from brecq.quant.compensate.samples import Samples, SampleSum
from brecq.quant.compensate.solve import Solution, compensate

__all__ = [
    "Geometry", "Inputs", "MomentSum", "Moments", "SampleSum", "Samples", "Solution", "compensate", "together",
]  # fmt: skip
