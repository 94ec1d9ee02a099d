"""Options that were given in vain are refused: nothing on a command line is ignored in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import typer

from brecq.config import QuantConfig, Recipe
from brecq.effects import without_effect
from brecq.errors import ConfigError
from brecq.settings import flags_of, setting_of


def refuse_vain(ctx: typer.Context, config: QuantConfig, *, kept: frozenset[str] = frozenset()) -> None:
    """Raise `ConfigError` for the first option on the command line that changes nothing in `config`.

    `kept`: names of settings that something else than the quantization reads.
    """
    idle = without_effect(config)
    for name, option in _given(ctx):
        if name in idle and name not in kept:
            raise ConfigError(f"{option} would do nothing: {idle[name]}; drop it")


def _given(ctx: typer.Context) -> Iterator[tuple[str, str]]:
    """Settings that the command line names, each with its option as it is written there."""
    typed = {
        str(parameter.name): parameter.opts
        for parameter in ctx.command.params
        if (source := ctx.get_parameter_source(str(parameter.name))) is not None and source.name == "COMMANDLINE"
    }
    options = {option for opts in typed.values() for option in opts}
    for cls in (QuantConfig, Recipe):
        for field in dataclasses.fields(cls):
            known = setting_of(field)
            if known is None or not (flags := flags_of(field, known)):
                continue
            if cls is Recipe and known.flags is None:
                continue  # without an option of its own
            flag, _, off = max(flags, key=len).partition("/")
            if flag in options:
                yield field.name, off if off and not ctx.params[field.name] else flag
    if Recipe.presets.option in options:
        yield "recipe", Recipe.presets.option
    change = Recipe.presets.change
    for text in ctx.params.get(change.lstrip("-").replace("-", "_")) or ():
        yield text.partition("=")[0].strip(), f"{change} {text}"
