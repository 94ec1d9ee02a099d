"""The patches of a layer's inputs themselves, where they are fewer than the layer has inputs: see `moments.py`.

H and B of N patches are products of [K, N] matrices, which take less memory than they do, and say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from brecq.quant.compensate.columns import COLUMNS
from brecq.quant.compensate.geometry import Geometry
from brecq.quant.compensate.moments import mean_error, pull_of, unit_of
from brecq.quant.compensate.thin import Thin


@dataclass(frozen=True)
class Samples:
    """Per group of the layer.

    Attributes:
        patches: x_q, reference: x_f, float32 [G, K, N], both in one unit; the same tensor where they are equal.
        root: that unit times the square root of each patch's share in means, float64 [N].
        mean, float_mean: E[x_q] and E[x_f] before anything was taken from the patches, float64 [G, K].
    """

    patches: Tensor
    reference: Tensor
    root: Tensor
    mean: Tensor
    float_mean: Tensor

    @property
    def finite(self) -> bool:
        """Whether there is no NaN and no infinity among the inputs."""
        return bool(torch.isfinite(self.mean).all() & torch.isfinite(self.float_mean).all())

    def central(self) -> Samples:
        """Less their mean, for a layer whose bias makes up for the mean error."""
        patches = _central(self.patches)
        same = self.reference is self.patches
        return replace(self, patches=patches, reference=patches if same else _central(self.reference))

    def corrected(self, share: float) -> Samples:
        """See `Moments.corrected`."""
        if share == 1 or self.reference is self.patches:
            return self
        return replace(self, reference=torch.lerp(self.patches, self.reference, share) if share else self.patches)

    def bias_shift(self, rows: Tensor, quantized: Tensor) -> Tensor:
        """See `Moments.bias_shift`."""
        return mean_error(rows, self.float_mean, quantized, self.mean)

    def pull(self, damping: float) -> Tensor:
        """See `Moments.pull`."""
        parts = self.patches.split(COLUMNS, dim=1)
        power = torch.cat([(part.double() * self.root).square().sum(2) for part in parts], dim=1)
        return pull_of(power, self.mean, damping)

    def layer(self, pull: Tensor) -> Thin:
        """The output error with `pull` as damping."""
        return Thin(self.patches, self.reference, self.root, pull)

    @property
    def count(self) -> int:
        """How many patches there are."""
        return self.patches.shape[2]

    @staticmethod
    def together(parts: Sequence[Samples]) -> Samples:
        """Several sets of inputs."""
        count = sum(one.count for one in parts)
        shares = [one.count / count for one in parts]
        return Samples(
            torch.cat([one.patches for one in parts], dim=2),
            torch.cat([one.reference for one in parts], dim=2),
            torch.cat([one.root * share**0.5 for one, share in zip(parts, shares, strict=True)]),
            torch.stack([one.mean * share for one, share in zip(parts, shares, strict=True)]).sum(0),
            torch.stack([one.float_mean * share for one, share in zip(parts, shares, strict=True)]).sum(0),
        )


class SampleSum:
    """Gathers the patches of a layer over batches, and over all the places where the layer is used."""

    def __init__(self, patches: Sequence[Tensor] = (), reference: Sequence[Tensor] = ()) -> None:
        self.patches, self.reference = list(patches), list(reference)

    def add(self, geometry: Geometry, x_q: Tensor, x_f: Tensor, every: int = 1, offset: int = 0) -> None:
        """See `MomentSum.add`."""
        for found, x in ((self.patches, x_q), (self.reference, x_f)):
            for block in geometry.patches(x, every, offset):
                found.append(block.clone(memory_format=torch.contiguous_format))

    def found(self) -> Samples:
        """All that was added, which is used up."""
        assert self.patches, "no input was added"
        patches, reference = _joined(self.patches), _joined(self.reference)
        reference = patches if torch.equal(patches, reference) else reference
        count, unit = patches.shape[2], max(unit_of(patches), unit_of(reference))
        for values in {id(value): value for value in (patches, reference)}.values():
            values /= unit
        root = torch.full((count,), unit * count**-0.5, dtype=torch.float64, device=patches.device)
        return Samples(patches, reference, root, unit * _mean(patches), unit * _mean(reference))


def _joined(blocks: list[Tensor]) -> Tensor:
    groups, size = blocks[0].shape[:2]
    found, done = blocks[0].new_empty(groups, size, sum(block.shape[2] for block in blocks)), 0
    for block in blocks:
        found[:, :, done : done + block.shape[2]] = block
        done += block.shape[2]
    blocks.clear()
    return found


def _mean(patches: Tensor) -> Tensor:
    return patches.mean(2, dtype=torch.float64)


def _central(patches: Tensor) -> Tensor:
    """Patches less the mean of each row, which float32 holds in two parts."""
    mean = _mean(patches)
    high = mean.float()
    return patches.sub(high[:, :, None]).sub_((mean - high).float()[:, :, None])
