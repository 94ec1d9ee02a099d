"""Compensated start: the weights' codes and steps, and the biases, in closed form, without any gradient."""

from __future__ import annotations

from brecq.quant.compensate.geometry import Geometry
from brecq.quant.compensate.moments import Moments, MomentSum, mixed
from brecq.quant.compensate.solve import Solution, compensate

__all__ = ["Geometry", "MomentSum", "Moments", "Solution", "compensate", "mixed"]
