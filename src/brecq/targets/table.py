"""What a runtime accepts: which layers at which widths, on which grids, and what has to be quantized besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

FLOAT = 32

WIDE = 16
"""The one bit-width beyond 8: of activations alone, where a runtime multiplies int16 by int8."""

Rule = Literal["codes", "same", "residual", "product"]
"""How an operator without a weight computes on codes: `codes` from operands on grids of their own to a result on a
grid of its own, `same` with one grid for all of them, `residual` with every operand quantized but the layer whose
kernel adds the others to its sums, `product` (hardswish) as the product of the operand with a clamp of it, exact where
the operand's step divides 3."""


@dataclass(frozen=True)
class Kernel:
    """A kernel for layers.

    Attributes:
        operators: the kinds of layers that it computes, as `brecq.graph.ops.WEIGHTED` names them, with `depthwise_`
            in front of those with one channel a group, where a runtime tells them apart.
        weights, activations: widths in bits that it takes, in any combination; 32 is float.
        per_channel: a scale per output channel, or one in all.
        stored: bits that a weight takes in the file, by its width, where they differ.
        writes_float: its sums may stay in float; otherwise what leaves the layer has to be quantized.
        computes: what it multiplies.
    """

    operators: tuple[str, ...]
    weights: tuple[int, ...]
    activations: tuple[int, ...]
    per_channel: bool = True
    stored: Mapping[int, int] = field(default_factory=dict)
    writes_float: bool = False
    computes: Literal["int8", "int4", "16x8", "float"] = "int8"


@dataclass(frozen=True)
class FixedGrid:
    """The grid that an operator's 8-bit result is always on: code 0 is `lowest`, each further one `scale` more."""

    scale: float
    lowest: float


@dataclass(frozen=True)
class Wide:
    """What a runtime accepts of networks whose activations all have 16 bits, where it cannot mix these with others;
    the fields are those of `Target`."""

    kernels: tuple[Kernel, ...]
    operators: Mapping[str, Rule]
    zero_point: Literal["any", "zero"] = "any"


@dataclass(frozen=True)
class Target:
    """What a runtime accepts.

    Attributes:
        name: for `--target`. title: for people. version: of the runtime that the table describes. source: where what
            the table says is from. executed: with what files for it were run, empty if they were not.
        format, options: for `brecq export`.
        zero_point: of activations: `any`, codes from 0 on; `zero`, signed codes around 0.
        symmetric: widths of weights that need zero point 0.
        biases: how they are stored, on the grid of the sums in either case.
        inputs, outputs: whether the network's own are quantized even where no layer reads or writes them.
        kernels: of layers; the first that fits counts.
        operators: without a weight that compute on codes, by the names of `brecq.graph.integer.operator_of`. All
            others compute in float.
        fixed: grids of results that the runtime prescribes, of 8 bits.
        wide: what holds instead for networks of 16-bit activations; see `at`.
    """

    name: str
    title: str
    version: str
    source: str
    format: str
    kernels: tuple[Kernel, ...]
    operators: Mapping[str, Rule]
    executed: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    zero_point: Literal["any", "zero"] = "any"
    symmetric: tuple[int, ...] = ()
    biases: Literal["int32", "float"] = "int32"
    inputs: bool = False
    outputs: bool = False
    fixed: Mapping[str, FixedGrid] = field(default_factory=dict)
    wide: Wide | None = None

    def at(self, activations: int) -> Target:
        """What it accepts of a network whose activations have so many bits in general."""
        if activations != WIDE or self.wide is None:
            return self
        own = self.wide
        return replace(self, kernels=own.kernels, operators=own.operators, zero_point=own.zero_point, wide=None)

    def kernel(self, layer: str, weights: int, activations: int) -> Kernel | None:
        """The kernel for a kind of layer at these widths, or `None`."""
        return next(
            (k for k in self.kernels_for(layer) if weights in k.weights and activations in k.activations), None
        )

    def kernels_for(self, layer: str) -> list[Kernel]:
        """All kernels for a kind of layer. A `depthwise_` one uses those of other convolutions only where the table
        has none for it."""
        own = [kernel for kernel in self.kernels if layer in kernel.operators]
        general = layer.removeprefix("depthwise_")
        return own or [kernel for kernel in self.kernels if general in kernel.operators]

    def widths(self, layer: str) -> list[tuple[int, int]]:
        """The legal pairs of widths for a kind of layer: weights, activations."""
        found = {(w, a) for kernel in self.kernels_for(layer) for w in kernel.weights for a in kernel.activations}
        return sorted(found)

    def nearest(self, layer: str, weights: int, activations: int) -> tuple[int, int] | None:
        """The narrowest legal widths that are at least these, activations before weights; `None` if there are none.

        Float is no such width unless it was asked for.
        """
        legal = [
            (a, w)
            for w, a in self.widths(layer)
            if w >= weights and a >= activations and (w == FLOAT) <= (weights == FLOAT)
            and (a == FLOAT) <= (activations == FLOAT)
        ]  # fmt: skip
        return None if not legal else min(legal)[::-1]

    def widest(self, activations: int) -> int:
        """Bits of the activations that are quantized for the sake of the runtime alone, where they have so many in
        general."""
        if activations == WIDE:
            return WIDE
        return max((a for kernel in self.kernels for a in kernel.activations if a <= 8), default=8)
