"""Learners: ways of learning how a tensor is quantized, one a file.

A new one is a file here, a line in `brecq.reconstruct.choice`, which says what learns what, and its option in
`brecq.config`.
"""

from __future__ import annotations

from brecq.quant.learners.adaround import AdaRound
from brecq.quant.learners.base import GridLearner, Learner, PenalizedLearner, Rate
from brecq.quant.learners.codes import MovingCodes
from brecq.quant.learners.given import GivenStep
from brecq.quant.learners.scale import TunedScale
from brecq.quant.learners.shift import BiasShift
from brecq.quant.learners.step import StepSize

__all__ = [
    "AdaRound",
    "BiasShift",
    "GivenStep",
    "GridLearner",
    "Learner",
    "MovingCodes",
    "PenalizedLearner",
    "Rate",
    "StepSize",
    "TunedScale",
]
