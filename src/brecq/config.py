"""What to quantize, how finely, and how to learn it: configurations that validate themselves."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from brecq.errors import ConfigError

FLOAT = 32
"""The bit-width that means: leave in floating point."""

Granularity = Literal["layer", "block", "stage", "net"]
Placement = Literal["output", "input"]
Scheme = Literal["auto", "symmetric", "asymmetric"]
Method = Literal["reconstruct", "rtn"]
Loss = Literal["plain", "fisher"]
FisherLabels = Literal["sampled", "given"]
StepSpace = Literal["log", "linear"]
Autocast = Literal["off", "bf16"]


def check_bits(name: str, bits: int) -> None:
    """Raise `ConfigError` unless `bits` is 2 to 8, or 32 for floating point."""
    if isinstance(bits, bool) or bits not in (*range(2, 9), FLOAT):
        raise ConfigError(f"{name} is {bits!r}; choose 2 to 8 bits, or 32 for floating point")


def check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(get_args(choices))}")


def check_number(name: str, value: float, low: float, high: float = float("inf")) -> None:
    if not low <= value <= high:
        bound = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
        raise ConfigError(f"{name} is {value!r}; it must be {bound}")


@dataclass(frozen=True)
class LayerRule:
    """An override for layers whose name matches `pattern` (`fnmatch` style: `layer4.*`, `*.conv2`).

    `weights` and `activations` are bit-widths (2 to 8, or 32 for float); `None` leaves the setting alone.
    `activations` is the width of the layer's *input*. The last matching rule wins.
    """

    pattern: str
    weights: int | None = None
    activations: int | None = None

    def __post_init__(self) -> None:
        if self.weights is None and self.activations is None:
            raise ConfigError(f"the rule for {self.pattern!r} sets nothing; give w=BITS, a=BITS or float")
        for name in ("weights", "activations"):
            bits = getattr(self, name)
            if bits is not None:
                check_bits(f"{name} of the rule for {self.pattern!r}", bits)

    def matches(self, layer: str) -> bool:
        return fnmatch.fnmatchcase(layer, self.pattern)

    @classmethod
    def parse(cls, pattern: str, settings: str) -> LayerRule:
        """Build a rule from text such as `w=8`, `w=4,a=8` or `float`."""
        values: dict[str, int] = {}
        for setting in settings.replace(" ", ",").split(","):
            key, _, value = setting.partition("=")
            if setting == "float":
                values.update(weights=FLOAT, activations=FLOAT)
            elif key in ("w", "a") and value.isdigit():
                values[{"w": "weights", "a": "activations"}[key]] = int(value)
            else:
                raise ConfigError(f"cannot read {setting!r} for {pattern!r}; write w=BITS, a=BITS or float")
        return cls(pattern, **values)


@dataclass(frozen=True)
class Recipe:
    """How blocks are reconstructed. Start from `Recipe.preset(...)` and change fields with `replace`.

    Attributes:
        steps: gradient steps per block on the weights' rounding (and on step sizes too, when `joint`).
        batch_size: samples a step.
        rounding_lr: Adam learning rate of the rounding logits v (AdaRound).
        step_lr: Adam learning rate of the activation step sizes (LSQ); relative when `step_space` is `log`.
        joint: learn rounding and step sizes together; otherwise rounding over the whole network first, with
            activations in float, then `activation_steps` on the step sizes (the BRECQ paper).
        activation_steps: steps per block of that second stage.
        step_space: learn the logarithm of a step size (scale-free) or the step size itself.
        bias_lr: Adam learning rate of the biases, in units of the root mean square of the layer's biases; 0 leaves
            them alone.
        qdrop: probability with which an activation element skips quantization while learning (QDrop), inside
            the block and at its input; 0 turns it off.
        loss: squared error, or squared error weighted by the diagonal Fisher information of the block output.
        fisher_labels: labels of the Fisher information: sampled from the network's own predictions, or those of the
            calibration data.
        normalize_loss: divide the reconstruction loss by its value before learning.
        rounding_penalty: λ, weight of the regularizer that drives the soft rounding to 0 or 1.
            With `normalize_loss` it multiplies the regularizer's mean over weights, otherwise its sum.
        beta: exponent β of the regularizer, annealed linearly from the first to the second value.
        warmup: share of the steps without regularizer.
        keep_best: keep the hard-rounded state with the lowest loss seen, not the last one.
        held_out: share of the samples that nothing is learned from, 128 at most: errors are measured on them, the best
            state is chosen and the tuning is judged by them. With 0 they are measured on samples learned from.
        tuning: steps of the end-to-end tuning after the last block, as a multiple of `steps`; it learns all step sizes
            and biases together against the outputs of the float network. 0 leaves it out.
        tune_lr: highest Adam learning rate of the tuning's first half, a fifth of it in the second, each annealed to
            0; relative, as step sizes are learned as logarithms. It is lowered for networks that it would throw off.
        range_norm: exponent p of the Lp error that range initialization minimizes.
        range_candidates: shrink factors tried by range initialization.
        range_samples: calibration samples that activation ranges are initialized on.
    """

    name: str = "custom"
    steps: int = 400
    batch_size: int = 32
    rounding_lr: float = 3e-2
    step_lr: float = 1e-3
    joint: bool = True
    activation_steps: int = 0
    step_space: StepSpace = "log"
    bias_lr: float = 1e-2
    qdrop: float = 0.5
    loss: Loss = "plain"
    fisher_labels: FisherLabels = "sampled"
    normalize_loss: bool = True
    rounding_penalty: float = 100.0
    beta: tuple[float, float] = (20.0, 2.0)
    warmup: float = 0.2
    keep_best: bool = True
    held_out: float = 0.125
    tuning: float = 0.5
    tune_lr: float = 1e-2
    range_norm: float = 2.4
    range_candidates: int = 100
    range_samples: int = 256

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, Loss)
        check_choice("fisher_labels", self.fisher_labels, FisherLabels)
        check_choice("step_space", self.step_space, StepSpace)
        for name in ("steps", "batch_size", "range_candidates", "range_samples"):
            check_number(name, getattr(self, name), 1)
        for name in (
            "activation_steps",
            "rounding_lr",
            "step_lr",
            "bias_lr",
            "rounding_penalty",
            "tuning",
            "tune_lr",
        ):
            check_number(name, getattr(self, name), 0)
        for name in ("qdrop", "warmup"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("held_out", self.held_out, 0, 0.5)
        check_number("range_norm", self.range_norm, 1)
        if len(self.beta) != 2 or not self.beta[0] >= self.beta[1] >= 1:
            raise ConfigError(
                f"beta is {self.beta!r}; give two numbers, the first at least the second, both at least 1"
            )
        if self.joint and self.activation_steps:
            raise ConfigError("activation_steps belongs to the two-stage recipe; set joint=False, or leave it 0")

    @property
    def tuning_steps(self) -> int:
        """Steps of the end-to-end tuning."""
        return round(self.tuning * self.steps)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with `changes`; unknown names raise `ConfigError`."""
        known = {f.name for f in dataclasses.fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ConfigError(f"unknown recipe setting {unknown[0]!r}; choose from {', '.join(sorted(known))}")
        return dataclasses.replace(self, **changes)

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """`fast` (default), `paper` (Li et al. 2021, published hyper-parameters) or `thorough`."""
        if name not in _PRESETS:
            raise ConfigError(f"recipe is {name!r}; choose one of {', '.join(_PRESETS)}")
        return _PRESETS[name]


_PRESETS = {
    "fast": Recipe(name="fast"),
    "paper": Recipe(
        name="paper", steps=20_000, rounding_lr=1e-3, joint=False, activation_steps=5_000, step_lr=4e-4,
        step_space="linear", bias_lr=0.0, qdrop=0.0, loss="fisher", normalize_loss=False, rounding_penalty=0.01,
        keep_best=False, held_out=0.0, tuning=0.0,
    ),
    "thorough": Recipe(name="thorough", steps=1_500),
}  # fmt: skip


@dataclass(frozen=True)
class QuantConfig:
    """What is quantized, to how many bits, and by which method.

    Attributes:
        weights: bits per weight, per output channel: 2 to 8, or 32 for float.
        activations: bits per activation, per tensor: 2 to 8, or 32 for float.
        first_last: bits of the first and the last layer, weights and inputs alike; `None` treats them as any other.
        placement: `output`, after each convolution's activation function and each residual addition (the paper),
            or `input`, the inputs of convolutions and linear layers only.
        weight_scheme, activation_scheme: `auto` is symmetric at 8 bits and asymmetric below for weights,
            asymmetric for activations.
        rules: overrides by layer name, see `LayerRule`.
        granularity: what is reconstructed as one: each `layer`, `block`, `stage`, or the `net`.
        blocks: names and members of blocks of your own, e.g. `{"stem": ["conv1", "layer1.*"]}`; what they leave
            over is partitioned automatically.
        method: `reconstruct`, or `rtn` (rounding to nearest: the baseline).
        recipe: hyper-parameters of the reconstruction.
        autocast: run convolutions and linear layers in bfloat16 while reconstructing.
        memory_budget: bytes that cached activations may take on the device and in host memory together; the rest
            goes to memory-mapped files. `None` uses half of what is free.
        class_axis: of the network's scores, where they are neither [N, classes], [N, classes, H, W] nor
            [N, tokens, classes]: Fisher information and agreement need it.
        seed: of every random choice.
    """

    weights: int = 4
    activations: int = 8
    first_last: int | None = 8
    placement: Placement = "output"
    weight_scheme: Scheme = "auto"
    activation_scheme: Scheme = "auto"
    rules: tuple[LayerRule, ...] = ()
    granularity: Granularity = "block"
    blocks: Mapping[str, Sequence[str]] | None = None
    method: Method = "reconstruct"
    recipe: Recipe = field(default_factory=lambda: Recipe.preset("fast"))
    autocast: Autocast = "off"
    memory_budget: int | None = None
    class_axis: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_bits("weights", self.weights)
        check_bits("activations", self.activations)
        if self.first_last is not None:
            check_bits("first_last", self.first_last)
        for name, choices in (
            ("placement", Placement), ("weight_scheme", Scheme), ("activation_scheme", Scheme),
            ("granularity", Granularity), ("method", Method), ("autocast", Autocast),
        ):  # fmt: skip
            check_choice(name, getattr(self, name), choices)
        if self.class_axis == 0:
            raise ConfigError("class_axis is 0, which counts samples; give the axis of classes, such as 1 or -1")
        if self.memory_budget is not None:
            check_number("memory_budget", self.memory_budget, 0)
        if self.weights == FLOAT and self.activations == FLOAT and not self.rules:
            raise ConfigError("weights and activations are both 32 bits: nothing to quantize; lower one of them")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantConfig:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        values = dict(values)
        recipe = dict(values.pop("recipe"))
        recipe["beta"] = tuple(recipe["beta"])
        rules = tuple(LayerRule(**rule) for rule in values.pop("rules"))
        return cls(**values, recipe=Recipe(**recipe), rules=rules)
