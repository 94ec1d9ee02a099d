"""Commands from dataclasses: every field with a `Setting` becomes an option, and the options the dataclass again."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from brecq.cli.completion import names_of
from brecq.errors import ConfigError
from brecq.settings import Presets, Setting, flags_of, setting_of
from brecq.text import is_optional, parse_settings, parse_value, without_none

Build = Callable[[Mapping[str, Any]], dict[str, Any]]
"""From the values of the options to arguments of the dataclass, by field."""

Options = tuple[list[inspect.Parameter], Build]


class Without(tuple[str, ...]):
    """In `Annotated[Config, Without(("a", "b"))]`: fields that the command leaves at their defaults."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """The function as typer wants it: each parameter that is a dataclass is replaced by the options of its fields."""
    hints = get_type_hints(function, include_extras=True)
    parts: list[Options] = []
    for name, parameter in inspect.signature(function).parameters.items():
        plain = parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY)
        parts.append(_dataclass(name, hints[name]) or ([plain], functools.partial(_same, name)))
    parameters, build = _joined(parts)

    @functools.wraps(function)
    def run(**values: Any) -> None:
        function(**build(values))

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def from_preset(cls: Any, preset: str, settings: Sequence[str], shortcuts: Mapping[str, Any]) -> Any:
    """The preset with `KEY=VALUE` settings and what other options set; a changed one is named `custom`."""
    presets: Presets = cls.presets
    types = {name: kind for name, kind in get_type_hints(cls).items() if name not in (*presets.kept, "presets")}
    changes = parse_settings(presets.change, settings, types)
    twice = next((name for name in shortcuts if name in changes), None)
    if twice is not None:
        raise ConfigError(f"{twice} is set twice; keep one")
    config = cls.preset(preset)
    return config.replace(**{"name": "custom", **shortcuts, **changes}) if shortcuts or changes else config


def _dataclass(name: str, hint: Any) -> Options | None:
    """The options of a dataclass, or `None` for any other type.

    Of `X | None`, where X has presets and so its options no defaults, `None` is made where none is given.
    """
    kind, *rest = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    without = next((each for each in rest if isinstance(each, Without)), ())
    if not dataclasses.is_dataclass(without_none(kind)):
        return None
    cls: Any = without_none(kind)
    presets: Presets | None = getattr(cls, "presets", None)
    hints = get_type_hints(cls, include_extras=True)
    parts = [] if presets is None else [_presets(cls, presets, is_optional(kind))]
    for entry in dataclasses.fields(cls):
        known = setting_of(entry)
        if known is not None and entry.name not in without and (presets is None or known.flags):
            of = hints[entry.name]
            parts.append(_dataclass(entry.name, of) or _option(entry, of, known, presets))
    parameters, build = _joined(parts)

    def build_it(values: Mapping[str, Any]) -> dict[str, Any]:
        if is_optional(kind) and not any(values[parameter.name] for parameter in parameters):
            return {name: None}
        given = build(values)
        if presets is None:
            return {name: cls(**given)}
        return {name: from_preset(cls, given.pop("preset", presets.default), given.pop("settings", ()), given)}

    return parameters, build_it


def _option(entry: Field[Any], kind: Any, known: Setting, presets: Presets | None) -> Options:
    """The option of a field. In a configuration with presets it is a shortcut without default: the preset decides."""
    default, parse, help, panel = entry.default, known.parse, known.help + known.usage, known.panel
    if presets is not None:
        kind, default, panel = kind | None, None, presets.panel
        help = f"short for {presets.change} {entry.name}={known.metavar or '…'}"
    elif parse is None and not _is_plain(kind, default):
        parse = functools.partial(parse_value, kind=kind)
    if parse is not None:
        default = _as_text(default)
        if known.repeatable and isinstance(default, str):
            help, default = f"{help}, by default {default}", None
        kind = list[str] if known.repeatable else str
        kind = kind | None if default is None else kind
    flags = flags_of(entry, known)
    flag = max(flags, key=len).partition("/")[0]
    made = typer.Option(
        *flags, metavar=known.metavar, help=_sentence(help, kind), rich_help_panel=panel, autocompletion=names_of(flag)
    )
    parameter = _parameter(flag, kind, made, default)

    def build(values: Mapping[str, Any]) -> dict[str, Any]:
        value = values[parameter.name]
        if value is None or value == []:
            return {}
        return {entry.name: value if parse is None else parse(flag, value)}

    return [parameter], build


def _presets(cls: Any, presets: Presets, optional: bool) -> Options:
    """The options that name a preset and change any field of it."""
    settings = [entry.name for entry in dataclasses.fields(cls) if entry.name not in presets.kept]
    names = f"{presets.names}." + (f" By default {presets.default}." if optional else "")
    fields = {
        "preset": _parameter(
            presets.option, str | None if optional else str,
            typer.Option(
                presets.option, metavar="NAME", help=names, rich_help_panel=presets.panel,
                autocompletion=names_of(presets.option),
            ),
            None if optional else presets.default,
        ),
        "settings": _parameter(
            presets.change, list[str] | None,
            typer.Option(
                presets.change, metavar="KEY=VALUE", rich_help_panel=presets.panel,
                help=f"Any setting of {presets.title}; repeatable: {', '.join(settings)}.",
            ),
            None,
        ),
    }  # fmt: skip

    def build(values: Mapping[str, Any]) -> dict[str, Any]:
        return {field: values[each.name] for field, each in fields.items() if values[each.name]}

    return list(fields.values()), build


def _parameter(flag: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    name = flag.lstrip("-").replace("-", "_")
    default = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option], default=default)


def _joined(parts: Sequence[Options]) -> Options:
    def build(values: Mapping[str, Any]) -> dict[str, Any]:
        return {field: value for _, each in parts for field, value in each(values).items()}

    return [parameter for parameters, _ in parts for parameter in parameters], build


def _same(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name]}


def _is_plain(kind: Any, default: Any) -> bool:
    """Whether typer reads the type itself: `None` has no text, so it must be the default."""
    kind = without_none(kind) if default in (None, MISSING) else kind
    return kind in (bool, int, float, str, Path) or get_origin(kind) is Literal


def _as_text(default: Any) -> Any:
    """The default as a user would type it."""
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or None
    return default if default is None or default is MISSING else str(default)


def _sentence(text: str, kind: Any) -> str:
    """With a capital letter, unless it starts with what the user is to type."""
    text = text.replace("`", "")
    literal = text.split()[0].rstrip(":,") in get_args(without_none(kind))
    return (text if literal else text[:1].upper() + text[1:]) + ("" if text.endswith("…") else ".")
