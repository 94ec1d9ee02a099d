"""How blocks are reconstructed: steps, rates and losses, and the presets of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from brecq.errors import ConfigError
from brecq.settings import HOW, MOST, Presets, changed, check, documented, setting

Loss = Literal["plain", "fisher"]
FisherLabels = Literal["sampled", "given"]
StepSpace = Literal["log", "linear"]
StepSchedule = Literal["constant", "cosine"]
Inputs = Literal["quantized", "float"]


def check_beta(name: str, beta: tuple[float, float]) -> None:
    """Raise `ConfigError` unless the exponent falls."""
    if beta[0] < beta[1]:
        raise ConfigError(f"{name} is {beta!r}; give two numbers, the first at least the second, both at least 1")


def _rate(default: float, help: str) -> Any:
    return setting(default, help, low=0, high=100)


def _share(default: float, help: str, high: float = 1) -> Any:
    return setting(default, help, low=0, high=high)


def _count(default: int | None, help: str, low: int = 1, **known: Any) -> Any:
    return setting(default, help, low=low, high=MOST, **known)


@documented
@dataclass(frozen=True)
class Recipe:
    """How blocks are reconstructed. Start from `Recipe.preset(...)` and change fields with `replace`."""

    # fmt: off
    name: str = setting("custom", "of the recipe, for people")
    compensate: bool = setting(
        True,
        "start from codes, weight steps and biases in closed form, from the second moments of each layer's inputs; "
        "otherwise from weights rounded to nearest",
    )
    correction: float | None = setting(
        None,
        "share of the error in a layer's input that its weights make up for in this start: 1 is the target of GPTAQ, "
        "0 that of GPTQ. By default 1 where weights have fewer than 4 bits and activations stay in float or have 16; "
        "0 where weights have 4 bits or more, activations fewer than 8, and at least 50 steps follow, which correct "
        "the rest: rounding is noise, which weights can only make smaller together with the signal; else 0.5",
        low=0, high=1,
    )
    damping: float = setting(
        0.01,
        "share of its mean that is added to the diagonal of these moments, more where samples are few: how far to "
        "distrust them",
        low=1e-6, high=1000,
    )
    steps: int = _count(
        300, "gradient steps per block on the weights' rounding (and on step sizes too, when `joint`)",
        low=0, flags=("--steps",), metavar="N",
    )
    batch_size: int | None = _count(
        None,
        "samples a step. By default 32; on a CPU fewer where samples are large, down to 8 for three channels of "
        "224 × 224 and more: steps are worth more than samples there",
        flags=("--batch-size",), metavar="N",
    )
    rounding_lr: float = _rate(3e-2, "Adam learning rate of the rounding logits v (AdaRound)")
    step_lr: float = _rate(
        1e-3, "Adam learning rate of the activation step sizes (LSQ); relative when `step_space` is `log`"
    )
    joint: bool = setting(
        True,
        "learn rounding and step sizes together; otherwise rounding over the whole network first, with activations "
        "in float, then `activation_steps` on the step sizes (the BRECQ paper)",
    )
    activation_steps: int = _count(0, "steps per block of that second stage", low=0)
    activation_norm: float = setting(
        2.0, "exponent p of the error |·|^p that the second stage minimizes", low=1, high=10
    )
    activation_inputs: Inputs = setting(
        "quantized",
        "what a block reads while the second stage learns it: what the quantized blocks before it give, or the float "
        "network's activations",
    )
    step_space: StepSpace = setting("log", "learn the logarithm of a step size (scale-free) or the step size itself")
    step_schedule: StepSchedule = setting(
        "constant", "the learning rate of step sizes in a block: constant, or falling to 0 along a cosine"
    )
    bias_lr: float = _rate(
        1e-2,
        "Adam learning rate of the biases, in units of the root mean square of the layer's biases, or of a tenth of "
        "its outputs' where that is more; 0 leaves them alone",
    )
    first_layer: bool = setting(
        True,
        "learn the first layer, where it is a block of its own; otherwise it stays rounded to nearest, and what it "
        "gives keeps the range that was searched, until the tuning",
    )
    qdrop: float = setting(
        0.5,
        "probability with which an activation element skips quantization while learning (QDrop), inside the block "
        "and at its input; 0 turns it off",
        low=0, high=1, flags=("--qdrop",), metavar="P",
    )
    loss: Loss = setting(
        "plain", "squared error, or squared error weighted by the diagonal Fisher information of the block output",
        flags=("--loss",),
    )
    fisher_labels: FisherLabels = setting(
        "sampled",
        "labels of the Fisher information: sampled from the network's own predictions, or those of the calibration "
        "data",
    )
    normalize_loss: bool = setting(True, "divide the reconstruction loss by its value before learning")
    rounding_penalty: float = setting(
        100.0,
        "λ, weight of the regularizer that drives the soft rounding to 0 or 1. With `normalize_loss` it multiplies "
        "the regularizer's mean over weights, otherwise its sum",
        low=0, high=MOST,
    )
    beta: tuple[float, float] = setting(
        (20.0, 2.0), "exponent β of the regularizer, annealed linearly from the first to the second value",
        low=1, high=1000, check=check_beta,
    )
    warmup: float = _share(0.2, "share of the steps without regularizer")
    keep_best: bool = setting(True, "keep the hard-rounded state with the lowest loss seen, not the last one")
    held_out: float = _share(
        0.125,
        "share of the samples that nothing is learned from, 128 at most: errors are measured on them, the best state "
        "is chosen and the tuning is judged by them. With 0 they are measured on samples learned from",
        high=0.5,
    )
    tuning: float = setting(
        1.0,
        "steps of the end-to-end tuning after the last block, as a multiple of `steps`; it learns all step sizes, "
        "biases and codes together, against what the float network computes. 0 leaves it out",
        low=0, high=1000,
    )
    tune_lr: float = _rate(
        1e-2,
        "highest Adam learning rate of step sizes and biases in the first third of the tuning, a fifth of it in the "
        "rest, each annealed to 0; relative, as step sizes are learned as logarithms. It is lowered for networks that "
        "it would throw off",
    )
    tune_codes_lr: float = _rate(
        0.03,
        "highest Adam learning rate of the weights' codes in the last two thirds of the tuning, in steps. It is "
        "lowered for networks that it would throw off; 0 leaves the codes alone",
    )
    tune_features: float = setting(
        1.0,
        "weight, in the tuning, of the squared error of what the last block receives, beside that of the outputs; "
        "each is divided by its first value",
        low=0, high=MOST,
    )
    range_norm: float = setting(2.4, "exponent p of the Lp error that range initialization minimizes", low=1, high=10)
    range_candidates: int = setting(100, "shrink factors tried by range initialization", low=1, high=100_000)
    range_samples: int = _count(
        256, "calibration samples that activation ranges, and the moments behind `compensate`, are taken from"
    )

    presets: ClassVar[Presets] = Presets(
        "--recipe", "--recipe-set", "the recipe", "instant, fast, thorough, paper or official", HOW
    )
    # fmt: on

    def __post_init__(self) -> None:
        check(self)
        if self.joint:
            for name, alone in (("activation_steps", 0), ("activation_norm", 2.0), ("activation_inputs", "quantized")):
                if getattr(self, name) != alone:
                    raise ConfigError(f"{name} belongs to the two-stage recipe; set joint=False, or leave it {alone}")

    @classmethod
    def from_earlier(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fields as this version names their values; see `brecq.plain.build`."""
        start = values.get("compensate")
        return {**values, "compensate": start != "no"} if isinstance(start, str) else values

    @property
    def tuning_steps(self) -> int:
        """Steps of the end-to-end tuning; none where neither of its learning rates lets anything change."""
        return round(self.tuning * self.steps) if self.tune_lr or self.tune_codes_lr else 0

    def replace(self, **changes: Any) -> Recipe:
        """A copy with `changes`; unknown names raise `ConfigError`."""
        return changed(self, "recipe", changes)

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """`instant` (no gradient), `fast` (default), `thorough`; `official` (what the code of Li et al. 2021 does) or
        `paper` (the same with the loss of their paper)."""
        if name not in PRESETS:
            raise ConfigError(f"recipe is {name!r}; choose one of {', '.join(PRESETS)}")
        return PRESETS[name]


_OFFICIAL = Recipe(
    name="official", compensate=False, steps=20_000, batch_size=32, rounding_lr=1e-3, joint=False,
    activation_steps=5_000, activation_norm=2.4, activation_inputs="float", step_lr=4e-4, step_space="linear",
    step_schedule="cosine", bias_lr=0.0, first_layer=False, qdrop=0.0, normalize_loss=False, rounding_penalty=0.01,
    keep_best=False, held_out=0.0, tuning=0.0, range_samples=64,
)  # fmt: skip

PRESETS = {
    "instant": Recipe(name="instant", steps=0, tuning=0.0),
    "fast": Recipe(name="fast"),
    "paper": _OFFICIAL.replace(name="paper", loss="fisher", activation_norm=2.0),
    "official": _OFFICIAL,
    "thorough": Recipe(name="thorough", steps=1_200, batch_size=32),
}
