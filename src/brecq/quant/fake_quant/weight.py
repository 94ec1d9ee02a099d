"""The fake-quantizer of a weight: rounding is learned by AdaRound, afterwards its steps can be tuned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from brecq.quant import adaround, affine, ranges
from brecq.quant.affine import IntRange
from brecq.quant.fake_quant.base import BaseFakeQuantize, Mode


class WeightFakeQuantize(BaseFakeQuantize):
    """Fake-quantizes a weight, per channel along `axis` (or as a whole), with learned rounding.

    Attributes:
        scale: float32 [C]. zero_point: float32 [C], whole numbers. Both are set by `initialize`.
        codes: int8, the weight's shape: learned codes, or `None` for rounding to nearest.
        start: codes that learning starts from, int8, or `None` for rounding to nearest.
        v: rounding logits while learning.
        theta: float32 [C], the steps' logarithms relative to their start, while they are tuned with fixed codes.
    """

    scale: Tensor | None
    zero_point: Tensor | None
    codes: Tensor | None
    start: Tensor | None
    _base: Tensor | None
    v: nn.Parameter | None
    theta: nn.Parameter | None

    def __init__(self, range: IntRange, qscheme: torch.qscheme, axis: int, *, enabled: bool = True) -> None:
        super().__init__(range, torch.int8, qscheme, axis, enabled)
        for name in ("scale", "zero_point", "codes", "start", "_base"):
            self.register_buffer(name, None)
        self.register_parameter("v", None)
        self.register_parameter("theta", None)

    @property
    def per_channel(self) -> bool:
        return self.qscheme in (torch.per_channel_affine, torch.per_channel_symmetric)

    @torch.no_grad()
    def initialize(self, w: Tensor, p: float, candidates: int) -> None:
        """Choose scale and zero point for the weight `w` by range search."""
        rows, axis = (w, self.ch_axis) if self.per_channel else (w.reshape(1, -1), 0)
        self.scale, self.zero_point = ranges.weight_range(rows, self.range, axis, self.symmetric, p, candidates)
        self.codes = self._base = self.v = None

    @torch.no_grad()
    def raise_steps(self, least: Tensor) -> None:
        """Make the steps [C] at least `least` [C] (or [1]); codes that are fixed are rounded to the larger steps."""
        assert self.scale is not None, "initialize was not called"
        assert self.zero_point is not None
        if bool((self.scale >= least).all()):
            return
        raised = torch.maximum(self.scale, least)
        if self.codes is not None:
            ratio, zero_point = self.scale / raised, self.zero_point
            if self.per_channel:
                ratio = affine.per_channel(ratio, self.codes.dim(), self.ch_axis)
                zero_point = affine.per_channel(zero_point, self.codes.dim(), self.ch_axis)
            self.codes = (((self.codes - zero_point) * ratio).round() + zero_point).to(torch.int8)
        self.scale = raised

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

    def begin_tuning(self, w: Tensor) -> nn.Parameter:
        """Fix the codes of `w` and start to learn the steps; returns the parameter to optimize."""
        assert self.scale is not None, "initialize was not called"
        self.codes = self.integers(w)
        self.theta = nn.Parameter(torch.zeros_like(self.scale))
        return self.theta

    def end_tuning(self, scale: Tensor) -> None:
        """Keep the steps `scale` [C] for good."""
        self.scale, self.theta = scale.detach().clone(), None

    def step_size(self) -> Tensor:
        """The current steps, positive, differentiable while they are tuned; float32 [C]."""
        assert self.scale is not None, "initialize was not called"
        return self.scale if self.theta is None else self.scale * self.theta.exp()

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
        scale, zero_point = self.step_size(), self.zero_point
        assert zero_point is not None
        if not self.per_channel:
            return scale[0], zero_point[0]
        return tuple(affine.per_channel(value, w.dim(), self.ch_axis) for value in (scale, zero_point))  # type: ignore[return-value]

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        assert self.scale is not None, "initialize was not called"
        assert self.zero_point is not None
        return self.scale, self.zero_point.to(torch.int64)
