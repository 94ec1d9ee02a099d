"""From text to values, for options and files; `ConfigError` names the option and what cannot be read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from brecq.errors import ConfigError


def shown(value: Any) -> str:
    """`repr(value)` on one line and short enough for a message."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no integers of more than some thousand digits
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 200 else f"{text[:160]}…"


def printable(text: str) -> str:
    """Text that can be written as UTF-8 anywhere: bytes of a file name that are none are written `\\xff`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_optional(kind: Any) -> bool:
    """Whether the type allows `None`."""
    return get_origin(kind) in (UnionType, Union) and type(None) in get_args(kind)


def without_none(kind: Any) -> Any:
    """`X` of `X | None`, and of `X`."""
    return next(each for each in get_args(kind) if each is not type(None)) if is_optional(kind) else kind


def describe_type(kind: Any) -> str:
    """What a user should give for `kind`."""
    if is_optional(kind):
        return f"{describe_type(without_none(kind))}, or none"
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if inner[0] in (int, float):
            return f"{'' if inner[-1] is Ellipsis else f'{len(inner)} '}numbers separated by commas"
        return f"a list of {inner[0].__name__}"
    origin = get_origin(kind) or kind
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(origin, f"a {origin.__name__}")


def parse_value(name: str, text: str, kind: Any) -> Any:
    """`text` as a value of the type `kind`: int, float, bool, str, a Literal or a tuple of numbers, or None too."""
    if is_optional(kind) and text.lower() == "none":
        return None
    expected, kind = kind, without_none(kind)
    try:
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        if get_origin(kind) is Literal:
            if text not in get_args(kind):
                raise ValueError(text)
            return text
        if get_origin(kind) is tuple:
            parts, kinds = text.split(","), get_args(kind)
            kinds = kinds[:1] * len(parts) if kinds[-1] is Ellipsis else kinds
            return tuple(of(part) for of, part in zip(kinds, parts, strict=True))
    except (KeyError, ValueError):
        pass
    else:
        raise TypeError(f"no text form for {name} of type {kind}")
    raise ConfigError(f"{name} is {shown(text)}; give {describe_type(expected)}")


def parse_settings(
    option: str, settings: Sequence[str], types: dict[str, Any], what: str = "setting"
) -> dict[str, Any]:
    """`KEY=VALUE` texts as values of these types."""
    found: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if key not in types:
            known = f"choose from {', '.join(types)}" if types else "there are none"
            raise ConfigError(f"{option} {shown(text)}: unknown {what} {shown(key)}; {known}")
        if not equals:
            raise ConfigError(f"{option} {shown(text)} gives no value; write {key}=VALUE")
        if key in found:
            raise ConfigError(f"{key} is set twice; keep one")
        found[key] = parse_value(f"{option} {key}", value, types[key])
    return found


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """`0.485,0.456,0.406`"""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; give numbers separated by commas, such as 0.5,0.5,0.5") from None


def parse_size(option: str, text: str) -> tuple[int, int]:
    """`224` or `224,160` (height, width)."""
    match = re.fullmatch(r"([1-9]\d{0,8})(?:,([1-9]\d{0,8}))?", text)
    if match is None:
        raise ConfigError(f"{option} is {text!r}; give a side such as 224, or height,width such as 224,160")
    return int(match[1]), int(match[2] or match[1])


def parse_resize(option: str, text: str) -> int | tuple[int, int] | None:
    """`256` (the short side), `256,192` (height, width) or `none`."""
    match = re.fullmatch(r"([1-9]\d{0,8})(?:,([1-9]\d{0,8}))?", text)
    if match is not None:
        return (int(match[1]), int(match[2])) if match[2] else int(match[1])
    if text.lower() == "none":
        return None
    raise ConfigError(f"{option} is {text!r}; give the short side such as 256, height,width such as 256,192, or none")


def parse_bit_list(option: str, text: str) -> tuple[int, ...]:
    """`2,4,8`, ascending, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 4 for part in parts):
        raise ConfigError(f"{option} is {text!r}; give bit-widths separated by commas, such as 2,4,8")
    return tuple(sorted({int(part) for part in parts}))


def parse_bytes(option: str, text: str) -> int:
    """`4GB` (10^9), `512MiB` (2^20), or plain bytes."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{option} is {text!r}; give a size such as 4GB or 512MiB")
    power = " kmgt".index((match[2] or " ").lower())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def parse_blocks(option: str, texts: Sequence[str]) -> dict[str, list[str]] | None:
    """`stem=conv1,layer1.*` → `{"stem": ["conv1", "layer1.*"]}`"""
    blocks: dict[str, list[str]] = {}
    for text in texts:
        name, _, members = text.partition("=")
        patterns = [pattern.strip() for pattern in members.split(",") if pattern.strip()]
        if not name or not patterns:
            raise ConfigError(f"{option} is {text!r}; write NAME=PATTERN,PATTERN such as stem=conv1,layer1.*")
        if name in blocks:
            raise ConfigError(f"{option} names {name!r} twice; list all its patterns in one {option}")
        blocks[name] = patterns
    return blocks or None


def some(names: Iterable[str], most: int) -> str:
    """The first names, and dots where there are more: `a, b, ...`."""
    every = list(names)
    return ", ".join([*every[:most], *(["..."] if len(every) > most else [])])
