"""How calibration inputs are distilled: a configuration that validates itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from brecq.errors import ConfigError
from brecq.settings import DATA, MOST, Presets, changed, check, documented, seed, setting

Latent = Literal["spectrum", "pixels", "generator"]
Start = Literal["leaves", "noise"]
Target = Literal["none", "class", "entropy"]


@documented
@dataclass(frozen=True)
class DistillConfig:
    """How inputs are distilled. Start from `DistillConfig.preset(...)` and change fields with `replace`."""

    # fmt: off
    name: str = setting("custom", "of the settings, for people")
    steps: int = setting(
        200, "gradient steps per batch; 0 only draws the pictures of `start=leaves`, which needs no batch norm",
        low=0, high=MOST,
    )
    batch_size: int = setting(
        32, "inputs optimized together: their joint statistics are matched, and those of one input say little",
        low=2, high=MOST,
    )
    latent: Latent = setting(
        "spectrum",
        "what is optimized: the inputs' `spectrum` (Fourier coefficients in units of 1/f, as photographs have them), "
        "the `pixels` (ZeroQ), or latent vectors and a small `generator` for each batch (Genie); the generator draws "
        "pictures [3, height, width] only",
    )
    start: Start = setting(
        "leaves",
        "what a spectrum and pixels start from: for pictures dead `leaves`, random shapes that hide one another and "
        "have the edges of photographs; or `noise`, as all other inputs do and a generator must",
    )
    lr: float = setting(
        0.03,
        "Adam learning rate of coefficients, of pixels (both in units of the inputs' deviation, and for 224×224 of "
        "them: it grows as the fourth root where there are fewer) or of latent vectors; decayed to 0 along a cosine, "
        "once in the coarse steps and once in the others",
        above=0, high=100,
    )
    generator_lr: float = setting(0.01, "that of the generator's weights", low=0, high=100)
    generator_width: int = setting(32, "its channels", low=1, high=4096)
    coarse: float = setting(
        0.75, "share of the steps made at half the height and width, at a quarter of the cost", low=0, high=1
    )
    input_weight: float = setting(
        1.0,
        "weight of the term that holds each channel of pictures at the mean and deviation that prepared training "
        "data has",
        low=0, high=MOST,
    )
    smoothness: float = setting(
        0.0, "weight of the total variation of the inputs; 0 turns it off", low=0, high=MOST
    )
    target: Target = setting(
        "none",
        "a term on the logits: `class` draws a class at random for each input and adds the cross-entropy, `entropy` "
        "asks for confident inputs of balanced classes",
    )
    target_weight: float = setting(0.1, "weight of that term", low=0, high=MOST)
    swing: bool = setting(True, "shift the input of strided convolutions at random (Genie's swing convolution)")
    shift: int = setting(2, "the inputs are rolled by up to so many pixels at random in each step", low=0, high=4096)
    flip: bool = setting(True, "mirror the inputs left to right in every second step, at random")
    seed: int = seed()

    presets: ClassVar[Presets] = Presets(
        "--distill-preset", "--distill-set", "the distillation",
        "fast, full, or leaves: pictures of random shapes", DATA,
        kept=("name", "seed"),
    )
    # fmt: on

    def __post_init__(self) -> None:
        check(self)
        if self.latent == "generator" and self.start != "noise":
            raise ConfigError(f"start is {self.start!r}, but a generator starts from noise; set start=noise")
        if self.steps == 0:
            self._check_drawn()
        self._check_read("generator_lr", "latent is not generator", self.latent == "generator")
        self._check_read("generator_width", "latent is not generator", self.latent == "generator")
        self._check_read("target_weight", "target is none", self.target != "none")

    def _check_read(self, name: str, why: str, read: bool) -> None:
        """Raise `ConfigError` for a setting that was changed and is not read."""
        default = next(field.default for field in dataclasses.fields(self) if field.name == name)
        if not read and getattr(self, name) != default:
            raise ConfigError(f"{name}={getattr(self, name)!r} would do nothing: {why}; drop it")

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
        return changed(self, "distillation", changes)

    @classmethod
    def preset(cls, name: str) -> DistillConfig:
        """`fast` (default; what a CPU can do), `full`, or `leaves`: pictures drawn without looking at the network."""
        if name not in PRESETS:
            raise ConfigError(f"distillation preset is {name!r}; choose one of {', '.join(PRESETS)}")
        return PRESETS[name]

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


PRESETS = {
    "fast": DistillConfig(name="fast"),
    "full": DistillConfig(name="full", steps=500, coarse=0.5),
    "leaves": DistillConfig(name="leaves", steps=0),
}
