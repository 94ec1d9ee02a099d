"""How good a network is: accuracy against labels, fidelity against a reference network."""

from __future__ import annotations

from brecq.evaluation.outcome import Evaluation
from brecq.evaluation.run import evaluate
from brecq.report import sqnr

__all__ = ["Evaluation", "evaluate", "sqnr"]
