"""What a run reports: per block the error before and after, and what was quantized where."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BlockReport:
    """One finished block.

    Attributes:
        layers: names of its weighted operators. steps: gradient steps made.
        error_before, error_after: mean squared error of the quantized block's output divided by the mean square of
            the float output, on the samples held out; rounded to nearest, and reconstructed. Of several outputs each
            counts in units of its own mean square. seconds: wall time.
            resumed: taken over from an earlier run. stage: `joint`, `weights`, `activations`, `rtn`, or `sensitivity`:
            then the errors are the greatest and the least of one weight or activation quantized alone.
    """

    name: str
    layers: tuple[str, ...]
    steps: int
    error_before: float
    error_after: float
    seconds: float
    stage: str = "joint"
    resumed: bool = False

    @property
    def gained(self) -> bool:
        """Whether the work on it was of use; a tuning of the whole network that was not is undone."""
        return self.error_after < self.error_before

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> BlockReport:
        """The inverse of `dataclasses.asdict`, also after a round trip through JSON, with `changes`."""
        return cls(**{**_known(values, "error_before", "error_after"), "layers": tuple(values["layers"]), **changes})


@dataclass(frozen=True)
class ScopeEntry:
    """One operator of the network and how it computes.

    Attributes:
        op: the graph node. layer: its layer or module. block: the block it is in. kind: `conv2d`, `add`, ...
        weights, inputs, output: e.g. `4 bit asymmetric` or `float`; weights have a scale per output channel,
            activations one per tensor. `weights` is empty without any; a layer's `output` is what leaves its
            activation function.
        reason: why something stays in float, or has other bits than the rest; empty otherwise.
        parameters: numbers in the weights and constants that it reads; those that several read count for the first.
    """

    op: str
    layer: str
    block: str
    kind: str
    weights: str
    inputs: str
    output: str
    reason: str = ""
    parameters: int = 0


def _grid(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(math.nan if value is None else value for value in values)


def _known(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Of values out of JSON, which has no NaN, those of these names as numbers again."""
    return {key: math.nan if value is None and key in names else value for key, value in values.items()}


def sqnr(signal: float, noise: float) -> float:
    """10·log10(signal / noise) in dB, of sums of squares; infinite without noise, NaN where they are not known."""
    if math.isnan(signal) or math.isnan(noise) or math.isinf(noise):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


@dataclass(frozen=True)
class TensorNoise:
    """A layer's output, behind its activation function, in the quantized network against the float one.

    Attributes:
        signal, noise: sums of squares of the float values and of the differences, over a few calibration samples.
        low, high: range of the float values. counts: their histogram, in bins of equal width from `low` to `high`.
        grid: the smallest and the largest value that quantization keeps; `None` for a tensor that stays in float.
    """

    layer: str
    signal: float
    noise: float
    low: float
    high: float
    counts: list[int]
    grid: tuple[float, float] | None

    @property
    def sqnr(self) -> float:
        """Signal-to-quantization-noise ratio in dB, infinite without noise."""
        return sqnr(self.signal, self.noise)


@dataclass(frozen=True)
class TensorLoss:
    """What one quantized tensor costs while everything else stays in float.

    Attributes:
        tensor: `features.3` of a weight, `output of features.3` or `add in layer1.0 (add_2)` of an activation.
        kind: `weight` or `activation`. bits: that it has. layers: that read it.
        own: noise over signal of the tensor itself. outputs: of each of the network's outputs, by name.
    """

    tensor: str
    kind: str
    bits: int
    layers: tuple[str, ...]
    own: float
    outputs: dict[str, float]

    @property
    def worst(self) -> float:
        """Noise over signal of the output that suffers most."""
        return max(self.outputs.values(), default=0.0)

    @property
    def sqnr(self) -> float:
        """The tensor's own signal-to-quantization-noise ratio in dB."""
        return sqnr(1.0, self.own)

    @property
    def output_sqnr(self) -> float:
        """That of the output that suffers most."""
        return sqnr(1.0, self.worst)


@dataclass(frozen=True)
class OutputNoise:
    """An output of the quantized network against the float one's, over a few calibration samples.

    Attributes:
        name: its key or place in what the network returns, empty where that is one tensor.
        layers: the last ones on the way to it. signal, noise: sums of squares of the values and of the differences.
    """

    name: str
    layers: tuple[str, ...]
    signal: float
    noise: float

    @property
    def sqnr(self) -> float:
        """Signal-to-quantization-noise ratio in dB, infinite without noise."""
        return sqnr(self.signal, self.noise)


@dataclass
class Report:
    """Everything that is known about a run.

    Attributes:
        scope: what was quantized where. blocks: in order, stage after stage. config: as given. seconds: wall time of
            the whole run. versions: of what determines the result. data_digest: of the calibration data.
        block_forwards: forward passes of single blocks over the calibration set, learning aside.
        notes: facts worth knowing, e.g. which implementation of the fake-quantizers ran.
        allocation: the bits of each layer, as a search chose them (`BitAllocation.to_dict`); `None` without.
        tensors: how far each layer's output is from the float network's. outputs: the same of the network's outputs.
        measured: of each network of a run's final table, by name, what was measured: the task's metric, by name.
        behind: of a network quantized in parts, the parts whose `tensors` and `outputs` hold the noise of parts before
            them, too, and which those are. To any other part after the first both networks gave the same inputs: what
            it received from the quantized one were other samples (regions).
    """

    scope: list[ScopeEntry]
    blocks: list[BlockReport]
    config: dict[str, Any]
    seconds: float
    versions: dict[str, str]
    data_digest: str
    block_forwards: int = 0
    samples: int = 0
    notes: list[str] = field(default_factory=list)
    allocation: dict[str, Any] | None = None
    tensors: list[TensorNoise] = field(default_factory=list)
    outputs: list[OutputNoise] = field(default_factory=list)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    behind: dict[str, list[str]] = field(default_factory=dict)

    def alone(self, parts: Sequence[str]) -> list[str]:
        """Of the `parts`, in the order they are called in, those measured without the noise of the ones before."""
        return [name for name in parts[1:] if name not in self.behind]

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        values = dict(values)
        scope = [ScopeEntry(**entry) for entry in values.pop("scope")]
        blocks = [BlockReport.from_dict(entry) for entry in values.pop("blocks")]
        tensors = [
            TensorNoise(**{**_known(entry, "signal", "noise", "low", "high"), "grid": _grid(entry["grid"])})
            for entry in values.pop("tensors", [])  # results of brecq 0.1.0 have none
        ]
        outputs = [
            OutputNoise(**{**_known(entry, "signal", "noise"), "layers": tuple(entry["layers"])})
            for entry in values.pop("outputs", [])  # results of older brecqs have none
        ]
        return cls(scope=scope, blocks=blocks, tensors=tensors, outputs=outputs, **values)
