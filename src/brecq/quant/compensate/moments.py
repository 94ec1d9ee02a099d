"""Second moments of a layer's inputs: all that the best codes of its weight depend on.

    H = E[x_q x_qᵀ],   B = E[x_f x_qᵀ]      x_q: patches of the layer's input, x_f: those in the float network

The layer's output error is E‖w·x_f − q·x_q‖² = q·H·qᵀ − 2·w·B·qᵀ + const. A bias that may change takes the mean
of the error upon itself; what is left depends on the central moments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from brecq.quant.compensate.dense import Dense
from brecq.quant.compensate.geometry import Geometry

_PRECISION = 1e-12
"""Relative error of central moments, which are differences in float64, with room; an eigenvalue's grows with K."""

_ROWS = 1 << 22
"""Elements of rows that are copied at a time."""

_SUMS = 4 * 2.0**-24
"""Relative error of sums of products in float32, with room; an eigenvalue's grows with K."""


@dataclass(frozen=True)
class Moments:
    """Per group of the layer. float64.

    Attributes:
        gram: H [G, K, K]. cross: B [G, K, K], rows from x_f, columns from x_q.
        mean, float_mean: E[x_q] and E[x_f], [G, K].
        count: of so many patches.
    """

    gram: Tensor
    cross: Tensor
    mean: Tensor
    float_mean: Tensor
    count: int

    @classmethod
    def zeros(cls, shape: torch.Size, device: torch.device | None = None) -> Moments:
        """Of inputs that are zero, for a weight with rows of `shape` [G, R, K]."""
        groups, _, size = shape
        square, line = (
            torch.zeros(groups, *rest, dtype=torch.float64, device=device) for rest in ((size, size), (size,))
        )
        return cls(square, square.clone(), line, line.clone(), 0)

    def central(self) -> Moments:
        """Covariances in place of second moments, for a layer whose bias makes up for the mean error."""
        outer = self.mean[:, :, None] * self.mean[:, None]
        cross = self.cross - self.float_mean[:, :, None] * self.mean[:, None]
        return replace(self, gram=self.gram - outer, cross=cross)

    def corrected(self, share: float) -> Moments:
        """As if the float network's inputs had 1 − `share` of the error of these: B → share·B + (1 − share)·H.

        With 1 weights aim at the float layer's output (GPTAQ), as far as least squares go: where inputs are noisy,
        they shrink. With 0 they aim at what the float weights would give on the same inputs (GPTQ).
        """
        return self if share == 1 else replace(self, cross=torch.lerp(self.gram, self.cross, share))

    def bias_shift(self, rows: Tensor, quantized: Tensor) -> Tensor:
        """E[w·x_f − q·x_q] of weights [G, R, K]: what to add to the bias; float64 [G·R]."""
        return mean_error(rows, self.float_mean, quantized, self.mean)

    @property
    def finite(self) -> bool:
        """Whether there is no NaN and no infinity among the inputs."""
        return bool(torch.isfinite(self.gram).all() & torch.isfinite(self.cross).all())

    def pull(self, damping: float) -> Tensor:
        """What is added to H's diagonal, float64 [G]; `damping`: at least this share of its mean."""
        return pull_of(self.gram.diagonal(dim1=1, dim2=2), self.mean, damping)

    def layer(self, pull: Tensor) -> Dense:
        """The output error with `pull` as damping."""
        return Dense(self.gram, self.cross, pull)

    @staticmethod
    def together(parts: Sequence[Moments]) -> Moments:
        """Means over several sets of inputs."""
        count = sum(one.count for one in parts)

        def mean(name: str) -> Tensor:
            return torch.stack([getattr(one, name) * (one.count / count) for one in parts]).sum(0)

        return Moments(mean("gram"), mean("cross"), mean("mean"), mean("float_mean"), count)


def pull_of(power: Tensor, mean: Tensor, damping: float) -> Tensor:
    """What is added to H's diagonal, [G]: at least what rounding errors can take from its eigenvalues, where inputs
    depend on each other, or where an input hardly varies around a large mean and central moments are nothing but such
    errors.

    Args:
        power: H_jj, mean: E[x_q], both float64 [G, K]. damping: share of H's mean diagonal.
    """
    size = power.shape[1]
    whole = (power.clamp(min=0) + mean.square()).mean(1)
    pull = torch.maximum(max(damping, _SUMS * size) * power.mean(1), _PRECISION * size * whole)
    return torch.where(pull > 0, pull, 1.0)


def mean_error(rows: Tensor, float_mean: Tensor, quantized: Tensor, mean: Tensor) -> Tensor:
    """E[w·x_f − q·x_q] of weights [G, R, K], for means float64 [G, K]; float64 [G·R]. Some rows at a time, as float64
    copies of wide ones are large."""
    parts = zip(*(each.split(max(1, _ROWS // each.shape[2]), dim=1) for each in (rows, quantized)), strict=True)
    errors = [(w.double() * float_mean[:, None]).sum(2) - (q.double() * mean[:, None]).sum(2) for w, q in parts]
    return torch.cat(errors, dim=1).flatten()


class MomentSum:
    """Adds up the moments of a layer over batches, and over all the places where the layer is used.

    What is added up are moments about the mean of the first batch: those about 0 would leave nothing but rounding
    errors of the central ones where an input hardly varies around a large mean.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[Tensor] = []
        self._about: tuple[Tensor, Tensor] | None = None

    def add(self, geometry: Geometry, x_q: Tensor, x_f: Tensor | None = None, every: int = 1, offset: int = 0) -> None:
        """One batch: the layer's input in the quantized network and, where it differs, in the float network.

        `every` and `offset` choose output positions, see `Geometry.patches`. Products are accumulated in float32
        within a block of patches, in units of a power of two, whatever size the inputs have; in float64 over blocks.
        """
        reference = None if x_f is None else geometry.patches(x_f, every, offset)
        q_unit = unit_of(x_q)
        f_unit = q_unit if x_f is None else unit_of(x_f)
        for q in geometry.patches(x_q, every, offset):
            f = q if reference is None else next(reference)
            if self._about is None:
                about = _mean(q, q_unit)
                self._about = about, about if f is q else _mean(f, f_unit)
            same = f is q and self._about[0] is self._about[1]
            q = _central(q, self._about[0], q_unit)
            f = q if same else _central(f, self._about[1], f_unit)
            gram, mean = q @ q.mT, q.sum(2)
            cross, float_mean = (gram, mean) if same else (f @ q.mT, f.sum(2))
            parts = [(gram, q_unit**2), (cross, f_unit * q_unit), (mean, q_unit), (float_mean, f_unit)]
            if not self._sums:
                self._sums = [torch.zeros_like(part, dtype=torch.float64) for part, _ in parts]
            for total, (part, unit) in zip(self._sums, parts, strict=True):
                total.add_(part, alpha=unit)
            self.count += q.shape[2]

    def found(self) -> Moments:
        """Means over everything that was added."""
        assert self._about is not None, "no input was added"
        gram, cross, mean, float_mean = (total / self.count for total in self._sums)
        at, float_at = (value.double() for value in self._about)  # [G, K, 1]
        whole, float_whole = mean + at[:, :, 0], float_mean + float_at[:, :, 0]
        for square, left, right in ((gram, mean, at), (cross, float_mean, at)):
            square += left[:, :, None] * right.mT
        gram += at * whole[:, None]
        cross += float_at * whole[:, None]
        return Moments(gram, cross, whole, float_whole, self.count)


def unit_of(values: Tensor) -> float:
    """The power of two near the largest value, by which dividing is exact: squares of float32 numbers may be more, or
    less, than float32 holds."""
    low, high = (float(value) for value in values.aminmax())
    return 2.0 ** min(max(math.frexp(max(-low, high))[1], -126), 126)


def _central(patches: Tensor, about: Tensor, unit: float) -> Tensor:
    """Patches [G, K, L] less a value of each row, in this unit."""
    return torch.add(-about / unit, patches, alpha=1 / unit)


def _mean(patches: Tensor, unit: float) -> Tensor:
    """[G, K, 1]; the sum may be more than float32 holds, in this unit it is not."""
    return (patches / unit).mean(2, keepdim=True) * unit
