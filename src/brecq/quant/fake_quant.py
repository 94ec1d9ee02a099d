"""The fake-quantizers that PT2E's prepare puts into the graph: weights, activations, biases.

Each is a `FakeQuantizeBase` as PT2E's convert expects, and has one of four modes: let values pass (`FLOAT`), let them
pass and record their range (`OBSERVE`), quantize with learnable parameters (`LEARN`), quantize for good (`HARD`).
The arithmetic is in `affine`, `ranges`, `adaround` and `kernels`.
"""

from __future__ import annotations

import enum
import math
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import FakeQuantizeBase

from brecq.quant import adaround, affine, kernels, ranges
from brecq.quant.affine import IntRange

OBSERVED_VALUES = 1 << 16
"""How many values of an activation are kept to initialize its range."""

BIAS_RANGE = IntRange(-(2**30), 2**30)
"""Bias codes stay inside int32 with room for the accumulator."""

_PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)

DEAD_CHANNEL = 1e-5
"""Smallest step of a channel, relative to the largest of its layer."""


class Mode(enum.Enum):
    """What a fake-quantizer does with the tensor that passes it."""

    FLOAT = "float"
    OBSERVE = "observe"
    LEARN = "learn"
    HARD = "hard"


class _FakeQuantize(FakeQuantizeBase):
    """What the three have in common: an integer range, a dtype and a mode."""

    def __init__(self, range: IntRange, dtype: torch.dtype, qscheme: torch.qscheme, axis: int, enabled: bool) -> None:
        super().__init__()
        self.range = range
        self.dtype = dtype
        self.qscheme = qscheme
        self.ch_axis = axis
        self.quant_min, self.quant_max = range.low, range.high
        self.is_dynamic = False
        self.enabled = enabled
        self.mode = Mode.FLOAT

    @property
    def symmetric(self) -> bool:
        return self.qscheme in (torch.per_channel_symmetric, torch.per_tensor_symmetric)

    @property
    def active(self) -> bool:
        """True if values are changed at the moment."""
        return self.enabled and self.mode in (Mode.LEARN, Mode.HARD)

    def describe(self) -> str:
        """For the quantization scope: `4 bit asymmetric`; weights that have one scale in all say so."""
        if not self.enabled:
            return "float"
        scheme = "symmetric" if self.symmetric else "asymmetric"
        whole = " per tensor" if self.dtype is torch.int8 and self.qscheme in _PER_TENSOR else ""
        return f"{self.range.bits} bit {scheme}{whole}"

    def extra_repr(self) -> str:
        return f"{self.describe()}, {self.mode.value}"


class WeightFakeQuantize(_FakeQuantize):
    """Fake-quantizes a weight, per channel along `axis` (or as a whole), with learned rounding.

    Attributes:
        scale: float32 [C]. zero_point: float32 [C], whole numbers. Both are set by `initialize`.
        codes: int8, the weight's shape: learned codes, or `None` for rounding to nearest.
        start: codes that learning starts from, int8, or `None` for rounding to nearest.
        v: rounding logits while learning.
    """

    scale: Tensor | None
    zero_point: Tensor | None
    codes: Tensor | None
    start: Tensor | None
    _base: Tensor | None
    v: nn.Parameter | None

    def __init__(self, range: IntRange, qscheme: torch.qscheme, axis: int, *, enabled: bool = True) -> None:
        super().__init__(range, torch.int8, qscheme, axis, enabled)
        for name in ("scale", "zero_point", "codes", "start", "_base"):
            self.register_buffer(name, None)
        self.register_parameter("v", None)

    @property
    def per_channel(self) -> bool:
        return self.qscheme in (torch.per_channel_affine, torch.per_channel_symmetric)

    @torch.no_grad()
    def initialize(self, w: Tensor, p: float, candidates: int) -> None:
        """Choose scale and zero point for the weight `w` by range search."""
        rows, axis = (w, self.ch_axis) if self.per_channel else (w.reshape(1, -1), 0)
        scale, self.zero_point = ranges.weight_range(rows, self.range, axis, self.symmetric, p, candidates)
        # A (nearly) dead channel's tiny step would leave no room for its bias, whose step is a multiple of it.
        self.scale = scale.clamp(min=DEAD_CHANNEL * scale.max().item())
        self.codes = self._base = self.v = None

    def begin_learning(self, w: Tensor) -> nn.Parameter:
        """Start AdaRound from rounding to nearest, or from `start`; returns the logits to optimize."""
        scale, zero_point = self._grid(w)
        self._base = adaround.base_codes(w, scale, zero_point, self.range)
        self.v = nn.Parameter(adaround.initial_logits(w, scale, zero_point, self.range, self.start))
        self.mode = Mode.LEARN
        return self.v

    @torch.no_grad()
    def learned_codes(self) -> Tensor:
        """The codes that the current logits round to, int8."""
        assert self._base is not None
        assert self.v is not None
        return adaround.hard_codes(self._base, self.v, self.range).to(torch.int8)

    def end_learning(self, codes: Tensor | None) -> None:
        """Keep `codes` for good (`None`: rounding to nearest) and forget the logits and where they started."""
        self.codes, self.start, self._base, self.v = codes, None, None, None
        self.mode = Mode.HARD

    @torch.no_grad()
    def integers(self, w: Tensor) -> Tensor:
        """The codes of `w` in hard mode, int8."""
        if self.codes is not None:
            return self.codes
        scale, zero_point = self._grid(w)
        return affine.quantize(w, scale, zero_point, self.range).to(torch.int8)

    def forward(self, w: Tensor) -> Tensor:
        if not self.active:
            return w
        scale, zero_point = self._grid(w)
        if self.mode is Mode.LEARN and self.v is not None:
            assert self._base is not None
            return adaround.soft_weight(self._base, self.v, scale, zero_point, self.range)
        return affine.dequantize(self.integers(w), scale, zero_point)

    def _grid(self, w: Tensor) -> tuple[Tensor, Tensor]:
        assert self.scale is not None, "initialize was not called"
        assert self.zero_point is not None
        if not self.per_channel:
            return self.scale[0], self.zero_point[0]
        return (affine.per_channel(value, w.dim(), self.ch_axis) for value in (self.scale, self.zero_point))  # type: ignore[return-value]

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        assert self.scale is not None, "initialize was not called"
        assert self.zero_point is not None
        return self.scale, self.zero_point.to(torch.int64)


class ActivationFakeQuantize(_FakeQuantize):
    """Fake-quantizes an activation as a whole, with a learned step (LSQ) and random dropping of quantization (QDrop).

    Attributes:
        scale, zero_point: float32, 0-dim; set by `initialize`.
        theta: what is learned: the step's logarithm relative to its start, or the step itself.
        drop: probability of skipping quantization while learning. seed: of the elements skipped; change it each step.
    """

    scale: Tensor | None
    zero_point: Tensor | None
    theta: nn.Parameter | None

    def __init__(
        self, range: IntRange, qscheme: torch.qscheme, *, dtype: torch.dtype = torch.uint8, enabled: bool = True
    ) -> None:
        super().__init__(range, dtype, qscheme, -1, enabled)
        self.register_buffer("scale", None)
        self.register_buffer("zero_point", None)
        self.register_parameter("theta", None)
        self.log_space = True
        self.drop = 0.0
        self.seed = 0
        self._samples: list[Tensor] = []
        self._low, self._high = math.inf, -math.inf

    @property
    def initialized(self) -> bool:
        return self.scale is not None

    @torch.no_grad()
    def initialize(self, p: float, candidates: int) -> None:
        """Choose scale and zero point from what was observed, and forget it."""
        samples = torch.cat(self._samples) if self._samples else torch.empty(0)  # nothing observed: an error below
        self.scale, self.zero_point = ranges.activation_range(
            samples, self._low, self._high, self.range, self.symmetric, p, candidates
        )
        self._samples, self._low, self._high = [], math.inf, -math.inf

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        self._low, self._high = min(self._low, low.item()), max(self._high, high.item())
        generator = torch.Generator().manual_seed(len(self._samples))
        flat = x.detach().reshape(-1)
        count = min(flat.numel(), OBSERVED_VALUES // 8)
        index = torch.randint(flat.numel(), (count,), generator=generator).to(x.device)
        self._samples.append(flat[index].float())
        if len(self._samples) > 8:  # thin out, so that every batch is represented and memory stays bounded
            self._samples = [part[::2] for part in self._samples]
            merged = torch.cat(self._samples)
            self._samples = list(merged.chunk(4))

    def begin_learning(self, log_space: bool, drop: float) -> nn.Parameter:
        """Start LSQ from the current step; returns the parameter to optimize."""
        assert self.scale is not None, "initialize was not called"
        self.log_space, self.drop = log_space, drop
        self.theta = nn.Parameter(torch.zeros_like(self.scale) if log_space else self.scale.clone())
        self.mode = Mode.LEARN
        return self.theta

    def step_size(self) -> Tensor:
        """The current step, positive, differentiable while learning; float32, 0-dim."""
        assert self.scale is not None, "initialize was not called"
        if self.theta is None:
            return self.scale
        if self.log_space:
            return self.scale * self.theta.exp()
        return self.theta.abs().clamp(min=ranges.MIN_SCALE)

    def end_learning(self, scale: Tensor) -> None:
        """Keep `scale` for good."""
        self.scale, self.theta, self.drop = scale.detach().clone(), None, 0.0
        self.mode = Mode.HARD

    def forward(self, x: Tensor) -> Tensor:
        if self.mode is Mode.OBSERVE and self.enabled:
            self._observe(x)
        if not self.active:
            return x
        assert self.zero_point is not None
        learning = self.mode is Mode.LEARN
        return kernels.lsq_qdrop(
            x,
            self.step_size(),
            self.zero_point,
            self.range.low,
            self.range.high,
            self.drop if learning else 0.0,
            self.seed,
            1.0 / math.sqrt(x.numel() * (self.range.high - self.range.low)),
        )

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        assert self.scale is not None, "initialize was not called"
        assert self.zero_point is not None
        return self.scale.reshape(1), self.zero_point.to(torch.int64).reshape(1)


class BiasFakeQuantize(_FakeQuantize):
    """Rounds a bias to the int32 grid of integer runtimes: step = input step · weight step, zero point 0."""

    def __init__(self, inputs: ActivationFakeQuantize, weight: WeightFakeQuantize) -> None:
        scheme = torch.per_channel_symmetric if weight.per_channel else torch.per_tensor_symmetric
        super().__init__(BIAS_RANGE, torch.int32, scheme, 0, inputs.enabled and weight.enabled)
        self.sources = (inputs, weight)  # a tuple: they are not this module's children

    @property
    def active(self) -> bool:
        inputs, weight = self.sources
        return inputs.active and weight.active

    @torch.no_grad()
    def step_size(self) -> Tensor:
        """Float32 [C]."""
        inputs, weight = self.sources
        assert weight.scale is not None
        return (inputs.step_size() * weight.scale).detach()

    @torch.no_grad()
    def forward(self, bias: Tensor) -> Tensor:
        if not self.active:
            return bias
        scale = self.step_size()
        return affine.fake_quantize(bias, scale, torch.zeros_like(scale), self.range)

    def describe(self) -> str:
        return "int32"

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        scale = self.step_size()
        return scale, torch.zeros_like(scale, dtype=torch.int64)


FakeQuantize = WeightFakeQuantize | ActivationFakeQuantize | BiasFakeQuantize


def set_mode(module: nn.Module, mode: Mode, *, activations: Mode | None = None) -> None:
    """Set the mode of all fake-quantizers in `module`; activations may differ from weights and biases."""
    for child in module.modules():
        if isinstance(child, ActivationFakeQuantize):
            child.mode = activations or mode
        elif isinstance(child, _FakeQuantize):
            child.mode = mode
