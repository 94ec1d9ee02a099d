"""From plain values, as JSON has them, to the dataclasses that they describe, every value of the type it should be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from brecq.errors import ConfigError
from brecq.text import describe_type, is_optional, shown, without_none

_Kind = TypeVar("_Kind")


def build(kind: type[_Kind], values: Any, where: str, *, without: Collection[str] = ()) -> _Kind:
    """A dataclass or named tuple from its fields by name; what is missing takes its default.

    A class whose fields had other values in earlier versions has a class method `from_earlier`, from those to these.

    Args:
        where: what is read, for messages. without: fields that plain values cannot give.

    Raises:
        ConfigError: an unknown or missing field, or a value of another type; the message names field and value.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {shown(values)}; give its fields by name")
    values = getattr(kind, "from_earlier", lambda given: given)(values)
    hints: dict[str, Any] = {name: hint for name, hint in _fields(kind).items() if name not in without}
    for name in values:
        if name not in hints:
            raise ConfigError(f"{where} has an unknown field {shown(name)}; there are {', '.join(hints)}")
    for name in _required(kind):
        if name not in values:
            raise ConfigError(f"{where} lacks {name!r}")
    return kind(**{name: _value(hints[name], value, f"{where}, {name}") for name, value in values.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    if is_optional(kind):
        return None if value is None else _value(without_none(kind), value, where)
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if kind is Any or (origin is Literal and value in inner):
        return value
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return build(kind, value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_value(of, each, f"{where}[{i}]") for i, (of, each) in pairs)
    elif origin in (list, set) or getattr(origin, "__name__", "") == "Sequence":
        if isinstance(value, (list, tuple)):
            return [_value(inner[0], each, f"{where}[{i}]") for i, each in enumerate(value)]
    elif isinstance(value, Mapping) and (origin is dict or getattr(origin, "__name__", "") == "Mapping"):
        return {_key(inner[0], k, where): _value(inner[1], v, f"{where}, {k}") for k, v in value.items()}
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) < math.inf and abs(value) < 1e300:
            return float(value)
    elif kind in (int, bool, str) and type(value) is kind:
        return value
    raise ConfigError(f"{where} is {shown(value)}; give {describe_type(kind)}")


def _key(kind: Any, key: Any, where: str) -> Any:
    """JSON writes numbers that are keys as text."""
    if kind is int and isinstance(key, str) and key.isdecimal() and len(key) < 10:
        return int(key)
    if get_origin(kind) is Literal and key not in get_args(kind):
        raise ConfigError(f"{where} has an unknown field {shown(key)}; there are {', '.join(get_args(kind))}")
    if kind is int and not isinstance(key, int):
        raise ConfigError(f"{where} has the key {shown(key)}; give a whole number")
    return key


def _fields(kind: Any) -> dict[str, Any]:
    names = kind._fields if hasattr(kind, "_fields") else [entry.name for entry in dataclasses.fields(kind)]
    hints = get_type_hints(kind)
    return {name: hints[name] for name in names}


def _required(kind: Any) -> list[str]:
    if hasattr(kind, "_fields"):
        return [name for name in kind._fields if name not in kind._field_defaults]
    missing = dataclasses.MISSING
    return [e.name for e in dataclasses.fields(kind) if e.default is missing and e.default_factory is missing]
