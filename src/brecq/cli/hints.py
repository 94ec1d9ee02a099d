"""A setting that has no option of its own, typed as one, is told how it is set."""

from __future__ import annotations

import dataclasses
from typing import Any

from typer.core import TyperCommand

from brecq.cli.parsing import join_pairs
from brecq.config import Recipe
from brecq.synthesis.config import DistillConfig


class SettingsCommand(TyperCommand):
    """A command with `--recipe-set` or `--distill-set`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # of an unknown option: the class is in a private module of typer
            if hasattr(error, "possibilities"):
                known = {option for parameter in self.params for option in parameter.opts}
                error.possibilities = spelled(str(getattr(error, "option_name", "")), known) or error.possibilities
            raise


class PairsCommand(SettingsCommand):
    """One whose `--set` takes two values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, join_pairs(args))


def spelled(option: str, known: set[str]) -> list[str]:
    """`--steps` → `--distill-set steps=…`, for each of the configurations that a command with the options `known`
    changes."""
    name = option.lstrip("-").replace("-", "_")
    return [
        f"{cls.presets.change} {name}=…"
        for cls in (Recipe, DistillConfig)
        if cls.presets.change in known
        and name not in cls.presets.kept
        and name in {field.name for field in dataclasses.fields(cls)}
    ]
