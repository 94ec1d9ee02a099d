"""How calibration inputs are distilled: a configuration that validates itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from brecq.config import check_choice, check_number
from brecq.errors import ConfigError

Latent = Literal["spectrum", "pixels", "generator"]
Start = Literal["leaves", "noise"]
Target = Literal["none", "class", "entropy"]


@dataclass(frozen=True)
class DistillConfig:
    """How inputs are distilled. Start from `DistillConfig.preset(...)` and change fields with `replace`.

    Attributes:
        steps: gradient steps per batch; 0 only draws the pictures of `start=leaves`, which needs no batch norm.
        batch_size: inputs optimized together: their joint statistics are matched.
        latent: what is optimized: the inputs' `spectrum` (Fourier coefficients in units of 1/f, as photographs have
            them), the `pixels` (ZeroQ), or latent vectors and a small `generator` for each batch (Genie); the
            generator draws pictures [3, height, width] only.
        start: what a spectrum and pixels start from: for pictures dead `leaves`, random shapes that hide one another
            and have the edges of photographs; or `noise`, as all other inputs do and a generator must.
        lr: Adam learning rate of coefficients, of pixels (both in units of the inputs' deviation, and for 224×224 of
            them: it grows as the fourth root where there are fewer) or of latent vectors; decayed to 0 along a
            cosine, once in the coarse steps and once in the others.
        generator_lr: that of the generator's weights. generator_width: its channels.
        coarse: share of the steps made at half the height and width, at a quarter of the cost.
        input_weight: weight of the term that holds each channel of pictures at the mean and deviation that prepared
            training data has.
        smoothness: weight of the total variation of the inputs; 0 turns it off.
        target: a term on the logits: `class` draws a class at random for each input and adds the cross-entropy,
            `entropy` asks for confident inputs of balanced classes.
        target_weight: weight of that term.
        swing: shift the input of strided convolutions at random (Genie's swing convolution).
        shift: the inputs are rolled by up to so many pixels at random in each step.
        flip: mirror the inputs left to right in every second step, at random.
        seed: of every random choice.
    """

    name: str = "custom"
    steps: int = 200
    batch_size: int = 32
    latent: Latent = "spectrum"
    start: Start = "leaves"
    lr: float = 0.03
    generator_lr: float = 0.01
    generator_width: int = 32
    coarse: float = 0.75
    input_weight: float = 1.0
    smoothness: float = 0.0
    target: Target = "none"
    target_weight: float = 0.1
    swing: bool = True
    shift: int = 2
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("latent", self.latent, Latent)
        check_choice("start", self.start, Start)
        check_choice("target", self.target, Target)
        if self.latent == "generator" and self.start != "noise":
            raise ConfigError(f"start is {self.start!r}, but a generator starts from noise; set start=noise")
        check_number("steps", self.steps, 0)
        check_number("generator_width", self.generator_width, 1)
        check_number("batch_size", self.batch_size, 2)  # statistics of one input say little
        for name in ("generator_lr", "input_weight", "smoothness", "target_weight", "shift"):
            check_number(name, getattr(self, name), 0)
        check_number("coarse", self.coarse, 0, 1)
        if not self.lr > 0:
            raise ConfigError(f"lr is {self.lr!r}; it must be positive")
        if self.steps == 0:
            self._check_drawn()

    def _check_drawn(self) -> None:
        """Nothing is set that pictures which are only drawn would ignore."""
        if self.start != "leaves":
            raise ConfigError(f"steps is 0, which leaves {self.start} as it is; set start=leaves, or steps")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("name", "steps", "batch_size", "start", "seed") and value != field.default:
                raise ConfigError(
                    f"steps is 0, so that {field.name}={value!r} would do nothing; drop it, or set steps"
                )

    def replace(self, **changes: Any) -> DistillConfig:
        """A copy with `changes`; unknown names raise `ConfigError`."""
        known = {f.name for f in dataclasses.fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ConfigError(f"unknown distillation setting {unknown[0]!r}; choose from {', '.join(sorted(known))}")
        return dataclasses.replace(self, **changes)

    @classmethod
    def preset(cls, name: str) -> DistillConfig:
        """`fast` (default; what a CPU can do), `full`, or `leaves`: pictures drawn without looking at the network."""
        if name not in _PRESETS:
            raise ConfigError(f"distillation preset is {name!r}; choose one of {', '.join(_PRESETS)}")
        return _PRESETS[name]

    def describe(self) -> str:
        """One line for people."""
        if self.steps == 0:
            return f"{self.name}: pictures of dead leaves, drawn without looking at the network, seed {self.seed}"
        changed = "" if self.target == "none" else f", {self.target} term"
        steps = f"{self.steps} steps" + (f" ({self.coarse:.0%} of them coarse)" if self.coarse else "")
        return f"{self.name}: {self.latent}, {steps} a batch of {self.batch_size}{changed}, seed {self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON."""
        return dataclasses.asdict(self)


_PRESETS = {
    "fast": DistillConfig(name="fast"),
    "full": DistillConfig(name="full", steps=500, coarse=0.5),
    "leaves": DistillConfig(name="leaves", steps=0),
}
