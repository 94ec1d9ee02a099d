"""What to quantize, how finely and by which method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from brecq.config.recipe import Recipe
from brecq.config.rules import FLOAT, LayerRule, check_activation_bits, check_bits, parse_rule
from brecq.errors import ConfigError
from brecq.plain import build
from brecq.settings import HOW, MODEL, RUN, WHAT, changed, check, documented, seed, setting
from brecq.targets import Target, load
from brecq.text import parse_blocks, parse_bytes, shown

Granularity = Literal["layer", "block", "stage", "net"]
Placement = Literal["output", "input"]
Scheme = Literal["auto", "symmetric", "asymmetric"]
ActivationScheme = Literal["auto", "symmetric", "asymmetric", "signed"]
Method = Literal["reconstruct", "rtn"]
Autocast = Literal["off", "bf16"]
Outputs = Literal["auto", "scores", "values"]


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
        8, "bits per activation, per tensor: 2 to 8, 16, or 32 for float", check=check_activation_bits,
        flags=("-a", "--activation-bits"), metavar="BITS", panel=WHAT,
    )
    first_last: int | None = setting(
        8,
        "bits of the first and the last layer, weights and inputs alike, but inputs that have 16 keep them; none "
        "treats them as any other",
        check=check_bits, metavar="BITS|none", panel=WHAT,
    )
    first_last_outputs: bool = setting(
        True,
        "give at least as many bits to what the first layer puts out, and to what is pooled to be the last layer's "
        "input; the authors of BRECQ do the first",
        flags=("--first-last-outputs/--no-first-last-outputs",), panel=WHAT,
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
        given: Any = self.recipe
        if isinstance(given, str):
            raise ConfigError(f"recipe is {given!r}; give a Recipe, such as Recipe.preset({given!r})")
        check(self)
        if self.weights == FLOAT and self.activations == FLOAT and not self.rules:
            raise ConfigError("weights and activations are both 32 bits: nothing to quantize; lower one of them")
        if self.runtime is not None:
            self._check_target(self.runtime)

    @property
    def runtime(self) -> Target | None:
        """The table of the target, for activations of these bits."""
        return None if self.target is None else load(self.target).at(self.activations)

    @property
    def learns(self) -> bool:
        """Whether it takes steps along the gradient."""
        return self.method == "reconstruct" and bool(self.recipe.steps or self.recipe.activation_steps)

    @property
    def has_wider_ends(self) -> bool:
        """Whether first and last layers have more bits than the activations of others."""
        return self.first_last is not None and self.activations < self.first_last

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

    def replace(self, **changes: Any) -> QuantConfig:
        """A copy with `changes`; unknown names raise `ConfigError`."""
        return changed(self, "configuration", changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantConfig:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        return build(cls, values, "the configuration")
