"""One declaration a setting: what it means, which values it takes, and how the command line spells it.

The fields of a configuration carry a `Setting`. `check` validates them, `documented` writes the docstring and
`brecq.cli.command` makes the options from it: nothing about a setting is said twice.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from brecq.errors import ConfigError
from brecq.text import describe_type, is_optional, shown, without_none

WHAT, HOW, MODEL, DATA, RUN = (
    "What is quantized", "How it is learned", "The model", "The data", "The run",
)  # fmt: skip
"""Panels of `--help`."""

MOST = 10**9
"""Of anything that is counted: steps, samples."""
MAX_SKIPPED = 0.01
"""Share of the files of a data set that may be unreadable, by default."""
MOST_SEED = 2**64 - 1

_MOST = sys.float_info.max

_Class = TypeVar("_Class", bound=type)
_Config = TypeVar("_Config")


@dataclass(frozen=True)
class Setting:
    """What is known of one field of a configuration.

    Attributes:
        help: what it means; a sentence for `--help`, a line of the docstring.
        low, high: of numbers, both allowed; `above` is a bound that is not.
        check: raises `ConfigError` unless a value of this name is allowed, where the type and bounds do not say it.
        usage: what only the command line has to say.
        flags: the options' names; `None` makes one of the field's name, and `()` none at all.
        panel, metavar: of `--help`.
        parse: from the option's name and text to the value; `None` goes by the type. `repeatable` gives it a list.
    """

    help: str
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    check: Callable[[str, Any], Any] | None = None
    usage: str = ""
    flags: tuple[str, ...] | None = None
    panel: str | None = None
    metavar: str | None = None
    parse: Callable[[str, Any], Any] | None = None
    repeatable: bool = False


@dataclass(frozen=True)
class Presets:
    """How the command line spells a configuration that starts from a preset and is changed field by field.

    Attributes:
        option, change: names of the two options. title: of the configuration. names: of the presets, for people.
        panel: of `--help`. default: the preset where none is named. kept: fields that `change` must not set.
    """

    option: str
    change: str
    title: str
    names: str
    panel: str
    default: str = "fast"
    kept: tuple[str, ...] = ()


def setting(
    default: Any = dataclasses.MISSING, help: str = "", *, factory: Any = dataclasses.MISSING, **known: Any
) -> Any:
    """A dataclass field with a `Setting`; `known` are the setting's other attributes."""
    return field(default=default, default_factory=factory, metadata={"setting": Setting(help, **known)})


def seed() -> Any:
    """The field of a seed."""
    return setting(0, "of every random choice", low=0, high=MOST_SEED, metavar="N", panel=RUN)


def threads(default: int | None, help: str, **known: Any) -> Any:
    """The field of a number of threads: many more than there are cores crash PyTorch."""
    return setting(default, help, low=1, high=1024, metavar="N", **known)


BATCH_SIZE = Setting("samples at a time", low=1, high=MOST, metavar="N", panel=RUN)
"""Of everything that is only computed, not learned."""


def setting_of(entry: dataclasses.Field[Any]) -> Setting | None:
    """The field's setting, if it has one."""
    return entry.metadata.get("setting")


def types_of(cls: Any) -> dict[str, Any]:
    """The evaluated types of a dataclass' fields."""
    return get_type_hints(cls)


def documented(cls: _Class) -> _Class:
    """Write the fields' help into the docstring."""
    known = ((entry.name, setting_of(entry)) for entry in dataclasses.fields(cls))
    lines = [f"        {name}: {found.help}" for name, found in known if found is not None]
    cls.__doc__ = "\n".join([(cls.__doc__ or "").rstrip(), "", "    Attributes:", *lines, "    "])
    return cls


def changed(config: _Config, what: str, changes: dict[str, Any]) -> _Config:
    """A copy of a configuration with `changes`; unknown names raise `ConfigError`."""
    known = sorted(entry.name for entry in dataclasses.fields(config))  # type: ignore[arg-type]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ConfigError(f"unknown {what} setting {unknown[0]!r}; choose from {', '.join(known)}")
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def flags_of(entry: dataclasses.Field[Any], known: Setting) -> tuple[str, ...]:
    """How the option of a field is written."""
    return known.flags or (f"--{entry.name.replace('_', '-')}",)


def check(config: Any, *, options: bool = False) -> None:
    """Raise `ConfigError` unless every field of a frozen dataclass is of its type and within its bounds.

    Whole numbers become `int`, numbers `float`, lists from JSON the tuples that the types name.

    Args:
        options: name the option in errors, not the field.
    """
    kinds = types_of(type(config))
    for entry in dataclasses.fields(config):
        found = setting_of(entry)
        if found is not None:
            name = max(flags_of(entry, found), key=len) if options else entry.name
            value = checked(name, getattr(config, entry.name), kinds[entry.name], found)
            object.__setattr__(config, entry.name, value)


def checked(name: str, value: Any, kind: Any, found: Setting) -> Any:
    """`value` as the type `kind`, if it is of it and allowed."""
    value = _typed(name, value, kind, found)
    if found.check is not None and value is not None:
        found.check(name, value)
    return value


def _typed(name: str, value: Any, kind: Any, found: Setting) -> Any:
    if is_optional(kind):
        return None if value is None else _typed(name, value, without_none(kind), found)
    origin = get_origin(kind) or kind
    number = not isinstance(value, bool)
    if kind is int and number and isinstance(value, Integral):
        return _bounded(name, int(value), found)
    if kind is float and number and isinstance(value, Real):
        return float(_bounded(name, value, found))
    if origin is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{name} is {shown(value)}; choose one of {', '.join(get_args(kind))}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) == len(value):
            return tuple(_typed(name, each, of, found) for each, of in zip(value, kinds, strict=True))
    elif origin not in (int, float, tuple) and isinstance(value, origin):
        return value
    raise ConfigError(f"{name} is {shown(value)}; give {describe_type(kind)}")


def _bounded(name: str, value: Any, found: Setting) -> Any:
    if max(found.low, -_MOST) <= value <= min(found.high, _MOST) and value > found.above:
        return value
    if found.above == 0 and not value > 0:
        bound = "positive"
    elif found.high >= MOST and not value > found.high:
        bound = f"at least {found.low}"
    elif found.high >= MOST:
        bound = f"at most {min(found.high, _MOST)}"
    elif found.above == 0:
        bound = f"above 0 and at most {found.high}"
    else:
        bound = f"between {found.low} and {found.high}"
    raise ConfigError(f"{name} is {shown(value)}; it must be {bound}")
