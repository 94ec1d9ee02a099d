"""The tables, one file a target."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from brecq.errors import ConfigError
from brecq.plain import build
from brecq.reading import read_toml
from brecq.targets.table import Target
from brecq.text import shown

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """All targets, in order."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@cache
def load(name: str) -> Target:
    """The table of a target.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in names():
        raise ConfigError(f"the target is {shown(name)}; choose one of {', '.join(names())}")
    path = FOLDER / f"{name}.toml"
    return build(Target, {"name": name, **read_toml(path, ConfigError, "table of a target")}, str(path.name))


def taking(activations: int) -> list[str]:
    """The targets that have kernels for activations of so many bits, in order."""
    tables = {name: load(name).at(activations) for name in names()}
    return [name for name, table in tables.items() if any(activations in each.activations for each in table.kernels)]
