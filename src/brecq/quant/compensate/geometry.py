"""What a weighted operator does to its input, seen as a matrix product: patches of the input, rows of the weight.

A convolution is the linear layer on its patches. Groups stay apart: patches are [G, K, n] and rows [G, R, K], for G
groups of R output channels, each with K inputs; output channel g·R + r is row r of group g. A transposed convolution
is a convolution with the flipped kernel over its input with zeros in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

Ints = int | Sequence[int]

BLOCK = 1 << 22
"""Elements of the largest block of patches: 16 MB."""


@dataclass(frozen=True)
class Geometry:
    """One use of a weight. Kernel and what belongs to it have one entry a spatial dimension; a linear layer has none.

    Attributes:
        groups: G. kernel, stride, dilation: sizes.
        before, after: zeros added to the input in front and behind, negative: elements cut off.
        insert: distance of the input's elements once zeros are inserted between them; 1 inserts none.
        transposed: the weight is [in, out/G, *kernel] and its kernel flipped.
    """

    groups: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    insert: tuple[int, ...] = ()
    transposed: bool = False

    @classmethod
    def linear(cls) -> Geometry:
        return cls(1)

    @classmethod
    def conv(
        cls, kernel: Sequence[int], stride: Ints = 1, padding: Ints | str = 0, dilation: Ints = 1, groups: int = 1
    ) -> Geometry:
        """The arguments of `torch.nn.functional.conv1d`, `conv2d` and `conv3d`; `kernel` is the kernel's size."""
        dims = len(kernel)
        dilation = _each(dilation, dims)
        if padding == "same":  # an odd zero is added behind
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            before, after = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        else:
            before = after = _each(0 if isinstance(padding, str) else padding, dims)
        return cls(groups, tuple(kernel), _each(stride, dims), dilation, before, after, (1,) * dims)

    @classmethod
    def conv_transpose(
        cls,
        kernel: Sequence[int],
        stride: Ints = 1,
        padding: Ints = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        dilation: Ints = 1,
    ) -> Geometry:
        """The arguments of `torch.nn.functional.conv_transpose1d`, `conv_transpose2d` and `conv_transpose3d`."""
        dims = len(kernel)
        dilation = _each(dilation, dims)
        reach = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, _each(padding, dims), strict=True)]
        after = [r + extra for r, extra in zip(reach, _each(output_padding, dims), strict=True)]
        ones = (1,) * dims
        return cls(
            groups, tuple(kernel), ones, dilation, tuple(reach), tuple(after), _each(stride, dims), transposed=True
        )

    def rows(self, weight: Tensor) -> Tensor:
        """[G, R, K] of a weight, or of anything of its shape."""
        if not self.transposed:
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        inputs, outputs, *kernel = weight.shape
        split = weight.reshape(self.groups, inputs // self.groups, outputs, *kernel)
        return split.flip(tuple(range(3, split.dim()))).transpose(1, 2).flatten(2)

    def weight(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `rows`: a tensor of the weight's `shape`."""
        if not self.transposed:
            return rows.reshape(shape)
        inputs, outputs, *kernel = shape
        split = rows.reshape(self.groups, outputs, inputs // self.groups, *kernel).transpose(1, 2)
        return split.flip(tuple(range(3, split.dim()))).reshape(shape)

    def patches(self, x: Tensor, every: int = 1, offset: int = 0) -> Iterator[Tensor]:
        """The columns that the rows are multiplied with, float32 [G, K, n], in blocks of at most `BLOCK` elements.

        Args:
            x: the layer's input, as the operator takes it (a batch dimension may be missing).
            every: take of so many positions along each spatial dimension one, of a linear layer of so many lines.
                offset: which; 0 to every^dims − 1 together visit every position once.
        """
        x = x.detach().to(torch.float32)
        if not self.kernel:
            yield from _lines(x.reshape(-1, x.shape[-1])[offset % every :: every])
            return
        if x.dim() == len(self.kernel) + 1:
            x = x[None]
        places = [self._places(extent, i, every, offset) for i, extent in enumerate(x.shape[2:])]
        if self._pointwise:
            at = (slice(place.start, place.stop, place.step) for place in places)
            picked = x[(slice(None), slice(None), *at)]
            yield from _lines(picked.movedim(1, -1).reshape(-1, x.shape[1]))
            return
        samples = max(1, BLOCK // max(1, x.shape[1] * prod(self.kernel) * prod(len(place) for place in places)))
        for part in x.split(samples):
            yield from self._blocks(self._spread(part), places)

    @property
    def _pointwise(self) -> bool:
        """Whether a patch is what all channels are at one place: channels-last, it need not be copied."""
        plain = not any((*self.before, *self.after)) and all(step == 1 for step in self.insert)
        return self.groups == prod(self.kernel) == 1 and plain

    def _blocks(self, x: Tensor, places: list[range]) -> Iterator[Tensor]:
        """Patches at `places` of samples, cut along the first dimension where one sample is too many."""
        channels, taps = x.shape[1], prod(self.kernel)
        x = x.transpose(0, 1)  # [C, N, *spatial]
        line = channels * taps * x.shape[1] * prod(len(place) for place in places[1:])
        lines = max(1, BLOCK // max(1, line))
        for first in range(0, len(places[0]), lines):
            part = [places[0][first : first + lines], *places[1:]]
            block = x.new_zeros(channels, taps, x.shape[1], *(len(place) for place in part))
            for tap, at in enumerate(product(*(range(size) for size in self.kernel))):
                shifts = [d * i - before for d, i, before in zip(self.dilation, at, self.before, strict=True)]
                cuts = [_inside(*each) for each in zip(part, shifts, x.shape[2:], strict=True)]
                here, there = zip(*cuts, strict=True)
                block[:, tap][(..., *here)] = x[(..., *there)]
            yield block.view(self.groups, channels // self.groups * taps, -1)

    def total(self, x: Tensor, of: int, samples: int) -> int:
        """How many patches `samples` inputs give, of which x holds `of`."""
        if not self.kernel:
            return x.numel() // x.shape[-1] * samples // of
        spatial = x.shape[-len(self.kernel) :]
        return samples * prod(len(self._places(extent, i, 1, 0)) for i, extent in enumerate(spatial))

    def every(self, total: int, wanted: int, *, most: bool = False) -> int:
        """The largest distance at which of `total` patches at least `wanted` remain, with `most` the smallest at which
        about so many do and no more; at least 1."""
        distance = (total / wanted) ** (1 / max(1, len(self.kernel)))
        return max(1, math.ceil(distance) if most else int(distance))

    def _places(self, extent: int, i: int, every: int, offset: int) -> range:
        """Where patches begin along spatial dimension i of `extent` input elements, padded."""
        padded = (extent - 1) * self.insert[i] + 1 + self.before[i] + self.after[i]
        outputs = (padded - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
        step = self.stride[i]
        return range(offset // every**i % min(every, outputs) * step, outputs * step, every * step)

    def _spread(self, x: Tensor) -> Tensor:
        """x with the zeros between its elements."""
        if all(step == 1 for step in self.insert):
            return x
        sizes = [(extent - 1) * step + 1 for extent, step in zip(x.shape[2:], self.insert, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        spread[(slice(None), slice(None), *(slice(None, None, step) for step in self.insert))] = x
        return spread


def _inside(places: range, shift: int, extent: int) -> tuple[slice, slice]:
    """Those of the places that lie, moved by `shift`, inside `extent`, not in the padding; and where that is."""
    first, last = (max(0, -(-(edge - shift - places.start) // places.step)) for edge in (0, extent))
    inside = places[first : max(first, last)]
    return slice(first, first + len(inside)), slice(inside.start + shift, inside.stop + shift, inside.step)


def _lines(rows: Tensor) -> Iterator[Tensor]:
    """Rows [n, K] as columns: [1, K, n] in blocks."""
    for part in rows.split(max(1, BLOCK // max(1, rows.shape[1]))):
        yield part.T[None]


def _each(value: Ints, dims: int) -> tuple[int, ...]:
    """One number for every dimension: ATen's lists of one stand for all."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values
