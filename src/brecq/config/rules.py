"""Bit-widths, and overrides of them by layer name."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from brecq.errors import ConfigError
from brecq.settings import Setting, checked
from brecq.targets import WIDE
from brecq.text import shown

FLOAT = 32
"""The bit-width that means: leave in floating point."""


def check_bits(name: str, bits: int) -> None:
    """Raise `ConfigError` unless `bits` is 2 to 8, or 32 for floating point."""
    if isinstance(bits, bool) or bits not in (*range(2, 9), FLOAT):
        only = "; 16 is for activations" if bits == WIDE else ""
        raise ConfigError(f"{name} is {shown(bits)}; choose 2 to 8 bits, or 32 for floating point{only}")


def check_activation_bits(name: str, bits: int) -> None:
    """Raise `ConfigError` unless `bits` is 2 to 8 or 16, or 32 for floating point."""
    if isinstance(bits, bool) or bits not in (*range(2, 9), WIDE, FLOAT):
        raise ConfigError(f"{name} is {shown(bits)}; choose 2 to 8 bits, 16, or 32 for floating point")


_CHECKS = {"weights": check_bits, "activations": check_activation_bits}


@dataclass(frozen=True)
class LayerRule:
    """An override for layers whose name matches `pattern` (`fnmatch` style: `layer4.*`, `*.conv2`).

    `weights` and `activations` are bit-widths (2 to 8, or 32 for float; of activations also 16); `None` leaves the
    setting alone.
    `activations` is the width of the layer's *input*. The last matching rule wins.
    """

    pattern: str
    weights: int | None = None
    activations: int | None = None

    def __post_init__(self) -> None:
        if self.weights is None and self.activations is None:
            raise ConfigError(f"the rule for {self.pattern!r} sets nothing; give w=BITS, a=BITS or float")
        checked("the pattern of a rule", self.pattern, str, Setting(""))
        for name, check in _CHECKS.items():
            setting = Setting("", check=check)
            bits = checked(f"{name} of the rule for {self.pattern!r}", getattr(self, name), int | None, setting)
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


def parse_rule(option: str, text: str) -> LayerRule:
    """`layer4.* w=8`: the pattern, a space, the settings."""
    pattern, _, settings = text.strip().partition(" ")
    if not settings:
        raise ConfigError(f"{option} {text!r} gives no setting; write {option} PATTERN w=BITS, a=BITS or float")
    return LayerRule.parse(pattern, settings.strip())
