"""The fake-quantizer of an activation: its step size is learned (LSQ), quantization randomly dropped (QDrop)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from brecq.quant import kernels, ranges
from brecq.quant.affine import IntRange
from brecq.quant.fake_quant.base import BaseFakeQuantize, Mode

OBSERVED_VALUES = 1 << 16
"""How many values of an activation are kept to initialize its range."""


class ActivationFakeQuantize(BaseFakeQuantize):
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
        self.fixed = False
        self.log_space = True
        self.drop = 0.0
        self.seed = 0
        self._samples: list[Tensor] = []
        self._low, self._high = math.inf, -math.inf

    @property
    def initialized(self) -> bool:
        return self.scale is not None

    def fix(self, scale: float, zero_point: int) -> None:
        """Give it a grid that is neither searched nor learned: a back end's operator writes on this one only."""
        self.fixed = True
        self.scale, self.zero_point = torch.tensor(scale), torch.tensor(float(zero_point))

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
