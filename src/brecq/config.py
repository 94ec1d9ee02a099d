"""What to quantize, how finely, and how to learn it: configurations that validate themselves."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from brecq.errors import ConfigError
from brecq.plain import build
from brecq.settings import (
    HOW,
    MODEL,
    MOST,
    RUN,
    WHAT,
    Presets,
    Setting,
    changed,
    check,
    checked,
    documented,
    seed,
    setting,
)
from brecq.targets import Target, load
from brecq.text import parse_blocks, parse_bytes, shown

FLOAT = 32
"""The bit-width that means: leave in floating point."""

Granularity = Literal["layer", "block", "stage", "net"]
Placement = Literal["output", "input"]
Scheme = Literal["auto", "symmetric", "asymmetric"]
ActivationScheme = Literal["auto", "symmetric", "asymmetric", "signed"]
Method = Literal["reconstruct", "rtn"]
Loss = Literal["plain", "fisher"]
FisherLabels = Literal["sampled", "given"]
StepSpace = Literal["log", "linear"]
StepSchedule = Literal["constant", "cosine"]
Inputs = Literal["quantized", "float"]
Compensate = Literal["auto", "yes", "no"]
Autocast = Literal["off", "bf16"]
Outputs = Literal["auto", "scores", "values"]


def check_bits(name: str, bits: int) -> None:
    """Raise `ConfigError` unless `bits` is 2 to 8, or 32 for floating point."""
    if isinstance(bits, bool) or bits not in (*range(2, 9), FLOAT):
        raise ConfigError(f"{name} is {shown(bits)}; choose 2 to 8 bits, or 32 for floating point")


def parse_rule(option: str, text: str) -> LayerRule:
    """`layer4.* w=8`: the pattern, a space, the settings."""
    pattern, _, settings = text.strip().partition(" ")
    if not settings:
        raise ConfigError(f"{option} {text!r} gives no setting; write {option} PATTERN w=BITS, a=BITS or float")
    return LayerRule.parse(pattern, settings.strip())


def check_class_axis(name: str, axis: int) -> None:
    """Raise `ConfigError` for the axis of samples."""
    if axis == 0:
        raise ConfigError(f"{name} is 0, which counts samples; give the axis of classes, such as 1 or -1")


def check_blocks(name: str, blocks: Mapping[str, Sequence[str]]) -> None:
    """Raise `ConfigError` unless `blocks` maps names to lists of patterns."""
    for block, patterns in blocks.items():
        listed = isinstance(patterns, (list, tuple)) and all(isinstance(pattern, str) for pattern in patterns)
        if not isinstance(block, str) or not listed or not patterns:
            raise ConfigError(
                f"{name} holds {shown(block)}: {shown(patterns)}; give names and lists of patterns, such as "
                '{"stem": ["conv1", "layer1.*"]}'
            )


def check_target(name: str, target: str) -> None:
    """Raise `ConfigError` unless there is a table of this name."""
    load(target)


_BITS = Setting("", check=check_bits)


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
        checked("the pattern of a rule", self.pattern, str, Setting(""))
        for name in ("weights", "activations"):
            bits = checked(f"{name} of the rule for {self.pattern!r}", getattr(self, name), int | None, _BITS)
            object.__setattr__(self, name, bits)

    def matches(self, layer: str) -> bool:
        return fnmatch.fnmatchcase(layer, self.pattern)

    @classmethod
    def parse(cls, pattern: str, settings: str) -> LayerRule:
        """Build a rule from text such as `w=8`, `w=4,a=8` or `float`."""
        values: dict[str, int] = {}
        for part in settings.replace(" ", ",").split(","):
            key, _, value = part.partition("=")
            if part == "float":
                values.update(weights=FLOAT, activations=FLOAT)
            elif key in ("w", "a") and value.isdigit():
                values[{"w": "weights", "a": "activations"}[key]] = int(value)
            else:
                raise ConfigError(f"cannot read {part!r} for {pattern!r}; write w=BITS, a=BITS or float")
        return cls(pattern, **values)


def check_beta(name: str, beta: tuple[float, float]) -> None:
    """Raise `ConfigError` unless the exponent falls."""
    if beta[0] < beta[1]:
        raise ConfigError(f"{name} is {beta!r}; give two numbers, the first at least the second, both at least 1")


def _start(given: Any) -> Any:
    """Of `compensate`, which was a flag in earlier versions."""
    return ("yes" if given else "no") if isinstance(given, bool) else given


def _rate(default: float, help: str) -> Any:
    return setting(default, help, low=0, high=100)


def _share(default: float, help: str, high: float = 1) -> Any:
    return setting(default, help, low=0, high=high)


def _count(default: int, help: str, low: int = 1, **known: Any) -> Any:
    return setting(default, help, low=low, high=MOST, **known)


@documented
@dataclass(frozen=True)
class Recipe:
    """How blocks are reconstructed. Start from `Recipe.preset(...)` and change fields with `replace`."""

    # fmt: off
    name: str = setting("custom", "of the recipe, for people")
    compensate: Compensate = setting(
        "auto",
        "start from codes, weight steps and biases in closed form, from the second moments of each layer's inputs; "
        "otherwise from weights rounded to nearest. auto: where no activation has fewer than 8 bits",
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
    batch_size: int = _count(32, "samples a step", flags=("--batch-size",), metavar="N")
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
        object.__setattr__(self, "compensate", _start(self.compensate))
        check(self)
        if self.joint:
            for name, alone in (("activation_steps", 0), ("activation_norm", 2.0), ("activation_inputs", "quantized")):
                if getattr(self, name) != alone:
                    raise ConfigError(f"{name} belongs to the two-stage recipe; set joint=False, or leave it {alone}")

    @classmethod
    def from_earlier(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fields as this version names their values; see `brecq.plain.build`."""
        return {name: _start(value) if name == "compensate" else value for name, value in values.items()}

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
        if name not in _PRESETS:
            raise ConfigError(f"recipe is {name!r}; choose one of {', '.join(_PRESETS)}")
        return _PRESETS[name]


_OFFICIAL = Recipe(
    name="official", compensate="no", steps=20_000, rounding_lr=1e-3, joint=False, activation_steps=5_000,
    activation_norm=2.4, activation_inputs="float", step_lr=4e-4, step_space="linear", step_schedule="cosine",
    bias_lr=0.0, first_layer=False, qdrop=0.0, normalize_loss=False, rounding_penalty=0.01, keep_best=False,
    held_out=0.0, tuning=0.0, range_samples=64,
)  # fmt: skip

_PRESETS = {
    "instant": Recipe(name="instant", compensate="yes", steps=0, tuning=0.0),
    "fast": Recipe(name="fast"),
    "paper": _OFFICIAL.replace(name="paper", loss="fisher", activation_norm=2.0),
    "official": _OFFICIAL,
    "thorough": Recipe(name="thorough", steps=1_200),
}


@documented
@dataclass(frozen=True)
class QuantConfig:
    """What is quantized, to how many bits, and by which method."""

    # fmt: off
    weights: int = setting(
        4, "bits per weight, per output channel: 2 to 8, or 32 for float", check=check_bits,
        flags=("-w", "--weight-bits"), metavar="BITS", panel=WHAT,
    )
    activations: int = setting(
        8, "bits per activation, per tensor: 2 to 8, or 32 for float", check=check_bits,
        flags=("-a", "--activation-bits"), metavar="BITS", panel=WHAT,
    )
    first_last: int | None = setting(
        8, "bits of the first and the last layer, weights and inputs alike; none treats them as any other",
        check=check_bits, metavar="BITS|none", panel=WHAT,
    )
    first_last_outputs: bool = setting(
        False,
        "give the same bits to what the first layer puts out, and to what is pooled to be the last layer's input, as "
        "the authors of BRECQ do",
        panel=WHAT,
    )
    placement: Placement = setting(
        "output",
        "output: after each convolution's activation function and each residual addition (the paper); input: only "
        "the inputs of convolutions and linear layers",
        panel=WHAT,
    )
    weight_scheme: Scheme = setting("auto", "auto is symmetric at 8 bits, asymmetric below", panel=WHAT)
    activation_scheme: ActivationScheme = setting(
        "auto",
        "auto is asymmetric, or what the target takes; signed has codes around 0 (zero point 0), behind a ReLU too",
        panel=WHAT,
    )
    target: str | None = setting(
        None,
        "the runtime that the network is learned for: widths, schemes and all that its kernels need quantized",
        check=check_target, usage="; see brecq targets", metavar="NAME", panel=WHAT,
    )
    rules: tuple[LayerRule, ...] = setting(
        (), "overrides by layer name (`LayerRule`), the last that matches wins",
        usage=", e.g. --set 'layer4.*' w=8 or --set head float; repeatable",
        flags=("--set",), metavar="PATTERN SETTINGS", panel=WHAT, repeatable=True,
        parse=lambda option, texts: tuple(parse_rule(option, text) for text in texts),
    )
    granularity: Granularity = setting("block", "what is reconstructed as one", panel=HOW)
    blocks: Mapping[str, Sequence[str]] | None = setting(
        None,
        "blocks of your own: names and the layers in them (what they leave over is partitioned automatically)",
        usage=", e.g. --block stem='conv1,layer1.*'; repeatable",
        flags=("--block",), metavar="NAME=PATTERN,…", panel=HOW, repeatable=True, parse=parse_blocks,
        check=check_blocks,
    )
    method: Method = setting("reconstruct", "rtn: rounding to nearest, the baseline", panel=HOW)
    recipe: Recipe = setting(factory=lambda: Recipe.preset("fast"), help="hyper-parameters of the reconstruction")
    autocast: Autocast = setting(
        "off", "bf16: run convolutions and linear layers in bfloat16 while reconstructing", panel=HOW
    )
    memory_budget: int | None = setting(
        None,
        "bytes that the run may take on the device and in host memory together, besides the model and the data: "
        "activations that do not fit wait in memory-mapped files, and too small a budget is refused. By default half "
        "of what is free, for the activations",
        low=0, high=2**63, usage="; e.g. 4GB", metavar="SIZE", panel=RUN, parse=parse_bytes,
    )
    class_axis: int | None = setting(
        None,
        "axis of classes in the network's scores, where it returns neither [N, classes] nor scores named logits or "
        "out: Fisher information and agreement need it",
        low=-8, high=8, check=check_class_axis, metavar="AXIS", panel=MODEL,
    )
    auto_high_precision: bool = setting(
        False,
        "give more bits (8, or float) to tensors that alone cost an output 1 % of its power, and far more than others "
        "do, measured before anything is learned",
        panel=WHAT,
    )
    outputs: Outputs = setting(
        "auto",
        "what the network returns, for Fisher information: scores of classes; or values (pictures, boxes, vectors), "
        "each output's squared error counted by its own power; auto takes one tensor, or one named logits or out, for "
        "scores",
        panel=MODEL,
    )
    seed: int = seed()
    # fmt: on

    def __post_init__(self) -> None:
        check(self)
        if self.weights == FLOAT and self.activations == FLOAT and not self.rules:
            raise ConfigError("weights and activations are both 32 bits: nothing to quantize; lower one of them")
        if self.first_last_outputs and self.first_last is None:
            raise ConfigError("first_last_outputs needs bits to give; set first_last=8, or leave it out")
        if self.target is not None:
            self._check_target(load(self.target))

    def _check_target(self, target: Target) -> None:
        if self.placement == "input":
            raise ConfigError(f"the target {target.name} decides the placement; leave placement at output")
        if target.zero_point == "zero" and self.activation_scheme not in ("auto", "signed"):
            raise ConfigError(
                f"activation_scheme is {self.activation_scheme!r}, but {target.name} takes signed codes with zero "
                "point 0; leave it at auto"
            )
        if target.symmetric and self.weight_scheme == "asymmetric":
            widths = ", ".join(map(str, target.symmetric))
            raise ConfigError(
                f"weight_scheme is 'asymmetric', but {target.name} takes symmetric weights of {widths} bits; leave it "
                "at auto"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantConfig:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        return build(cls, values, "the configuration")
