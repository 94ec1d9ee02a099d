"""From the text of single options to values; `ConfigError` and `DataError` name what cannot be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer

from brecq.config import LayerRule, Recipe
from brecq.errors import ConfigError, DataError
from brecq.synthesis.config import DistillConfig


def parse_first_last(text: str) -> int | None:
    """`8` or `none`."""
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--first-last is {text!r}; give a number of bits, or none") from None


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """`0.485,0.456,0.406`"""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; give numbers separated by commas, such as 0.5,0.5,0.5") from None


def parse_size(text: str) -> tuple[int, int]:
    """`224` or `224,160` (height, width)."""
    match = re.fullmatch(r"([1-9]\d*)(?:,([1-9]\d*))?", text)
    if match is None:
        raise ConfigError(f"--size is {text!r}; give a side such as 224, or height,width such as 224,160")
    return int(match[1]), int(match[2] or match[1])


def parse_resize(text: str) -> int | tuple[int, int] | None:
    """`256` (the short side), `256,192` (height, width) or `none`."""
    match = re.fullmatch(r"([1-9]\d*)(?:,([1-9]\d*))?", text)
    if match is not None:
        return (int(match[1]), int(match[2])) if match[2] else int(match[1])
    if text.lower() == "none":
        return None
    raise ConfigError(f"--resize is {text!r}; give the short side such as 256, height,width such as 256,192, or none")


def parse_bit_list(option: str, text: str) -> tuple[int, ...]:
    """`2,4,8`, ascending, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise ConfigError(f"{option} is {text!r}; give bit-widths separated by commas, such as 2,4,8")
    return tuple(sorted({int(part) for part in parts}))


def parse_bytes(text: str) -> int:
    """`4GB` (10^9), `512MiB` (2^20), or plain bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"--memory-budget is {text!r}; give a size such as 4GB or 512MiB")
    power = " kmgt".index((match[2] or " ").lower())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def parse_rule(text: str) -> LayerRule:
    """`layer4.* w=8`: the pattern, a space, the settings."""
    pattern, _, settings = text.strip().partition(" ")
    if not settings:
        raise ConfigError(f"--set {text!r} gives no setting; write --set PATTERN w=BITS, a=BITS or float")
    return LayerRule.parse(pattern, settings.strip())


def parse_blocks(texts: Sequence[str]) -> dict[str, list[str]]:
    """`stem=conv1,layer1.*` → `{"stem": ["conv1", "layer1.*"]}`"""
    blocks: dict[str, list[str]] = {}
    for text in texts:
        name, _, members = text.partition("=")
        patterns = [pattern.strip() for pattern in members.split(",") if pattern.strip()]
        if not name or not patterns:
            raise ConfigError(f"--block is {text!r}; write NAME=PATTERN,PATTERN such as stem=conv1,layer1.*")
        if name in blocks:
            raise ConfigError(f"--block names {name!r} twice; list all its patterns in one --block")
        blocks[name] = patterns
    return blocks


def parse_recipe(preset: str, settings: Sequence[str], shortcuts: dict[str, Any]) -> Recipe:
    """The preset with `KEY=VALUE` settings and shortcuts applied; a changed one is named `custom`."""
    recipe = Recipe.preset(preset)
    changes = _parse_settings("--recipe-set", settings, get_type_hints(Recipe), shortcuts)
    return recipe.replace(**{"name": "custom", **changes}) if changes else recipe


def distillation_settings() -> dict[str, Any]:
    """Name and type of what `--distill-set` can set; the seed is that of the run."""
    return {name: kind for name, kind in get_type_hints(DistillConfig).items() if name not in ("name", "seed")}


def parse_distillation(preset: str | None, settings: Sequence[str], seed: int) -> DistillConfig:
    """The preset (`fast` if `None`) with the run's seed and `KEY=VALUE` settings; a changed one is named `custom`."""
    config = DistillConfig.preset(preset or "fast")
    changes = _parse_settings("--distill-set", settings, distillation_settings(), {})
    return config.replace(**{"seed": seed, "name": "custom" if changes else config.name, **changes})


def _parse_settings(
    option: str, settings: Sequence[str], types: dict[str, Any], shortcuts: dict[str, Any]
) -> dict[str, Any]:
    """`KEY=VALUE` texts as values of these types, beside what other options set already."""
    changes: dict[str, Any] = dict(shortcuts)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in types:
            raise ConfigError(f"{option} {setting!r}: unknown setting {key!r}; choose from {', '.join(types)}")
        if not equals:
            raise ConfigError(f"{option} {setting!r} gives no value; write {key}=VALUE")
        if key in changes:
            raise ConfigError(f"{key} is set twice; keep one")
        changes[key] = parse_value(f"{option} {key}", value, types[key])
    return changes


def parse_value(name: str, text: str, kind: Any) -> Any:
    """`text` as a value of the type `kind`: int, float, bool, str, a Literal or a tuple of floats, or None too."""
    if get_origin(kind) is UnionType and type(None) in get_args(kind):
        if text.lower() == "none":
            return None
        kind = next(each for each in get_args(kind) if each is not type(None))
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
            parts = text.split(",")
            return tuple(of(part) for of, part in zip(get_args(kind), parts, strict=True))
    except (KeyError, ValueError):
        pass
    else:
        raise TypeError(f"no text form for {name} of type {kind}")
    raise ConfigError(f"{name} is {text!r}; give {describe_type(kind)}")


def describe_type(kind: Any) -> str:
    """What a user should type for `kind`."""
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} numbers separated by commas"
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "text")


def parse_format_options(format: str, settings: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` settings of an export format, each as the type that the format's writer declares."""
    from brecq.deploy.formats import option_types

    types = option_types(format)
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in types:
            takes = f"choose from {', '.join(types)}" if types else "it has none"
            raise ConfigError(f"--option {setting!r}: the format {format} has no option {key!r}; {takes}")
        if not equals:
            raise ConfigError(f"--option {setting!r} gives no value; write {key}=VALUE")
        if key in found:
            raise ConfigError(f"the option {key} is set twice; keep one")
        found[key] = parse_value(f"--option {key}", value, types[key])
    return found


def require_path(option: str, path: Path | None, *, file: bool = False) -> None:
    """Raise `DataError` unless `path` is there (and a file, with `file`); `None` passes."""
    if path is None:
        return
    if not path.exists():
        raise DataError(f"{option} is {str(path)!r}, which does not exist; check the path")
    if file and not path.is_file():
        raise DataError(f"{option} is {str(path)!r}, which is not a file")


def require_data(option: str, path: Path | None) -> None:
    """The same for data, where the path of an `.npz` file may name arrays: `data.npz:x,y`."""
    if path is not None:
        from brecq.data.arrays import split_selector

        require_path(option, split_selector(path)[0])


def given(ctx: typer.Context, names: Sequence[str]) -> str | None:
    """The first of the parameters that stands on the command line, as its option; `None` if none does."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(str(parameter.name))
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            return str(parameter.opts[-1])
    return None


def join_pairs(arguments: Sequence[str], option: str = "--set") -> list[str]:
    """`--set PATTERN SETTINGS` as one value, `--set "PATTERN SETTINGS"`: option parsers take one value each time."""
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*joined, argument, *rest]
        joined.append(argument)
        if argument == option and rest:
            joined.append(rest.pop(0))
        elif not argument.startswith(f"{option}="):
            continue
        if " " not in joined[-1].strip() and rest and not rest[0].startswith("-"):
            joined[-1] += f" {rest.pop(0)}"
    return joined
