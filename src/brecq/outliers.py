"""Samples unlike the others: one value of 1e30 takes the range of an activation from all that are of use."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

LIMIT = 256
"""How many times the typical largest value of a sample is too much: on a grid of 8 bits that reaches so far, half of
the samples are one code. In trained networks for pictures it is at most 4 (32 samples, inputs and activations)."""


@dataclass(frozen=True)
class Outlier:
    """A sample that reaches `value`, where the others typically reach `typical`; `more` others are as far off."""

    sample: int
    value: float
    typical: float
    more: int = 0

    def describe(self) -> str:
        """What follows the name of the sample, and of the tensor."""
        more = f", and {self.more} more samples do so" if self.more else ""
        return (
            f"reaches {self.value:.3g}, where samples typically reach {self.typical:.3g}{more}: no range of 8 bits "
            "holds both, and the others may be lost; remove the sample, or repair the data"
        )


def outlier(largest: Tensor) -> Outlier | None:
    """The sample whose largest magnitude lies far beyond the others', `None` without one.

    Zeros in most samples, as a network may have them, are not typical.

    Args:
        largest: magnitude of each sample, float64 [N].
    """
    some = largest[largest > 0]
    if not len(some):
        return None
    typical = float(some.median())
    count = int((largest > LIMIT * typical).sum())
    return Outlier(int(largest.argmax()), float(largest.max()), typical, count - 1) if count else None
