"""What a shell offers as values of options: names that brecq has, beside files where these are taken too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

Complete = Callable[[str], list[str]]


def _targets() -> Iterable[str]:
    from brecq.targets import names

    return names()


def _recipes() -> Iterable[str]:
    from brecq.config.recipe import PRESETS

    return PRESETS


def _distillations() -> Iterable[str]:
    from brecq.synthesis.config import PRESETS

    return PRESETS


def _hardware() -> Iterable[str]:
    from brecq.precision.hardware.accelerator import PRESETS

    return PRESETS


def _formats() -> Iterable[str]:
    from brecq.deploy.formats import FORMATS

    return FORMATS


_NAMES: Mapping[str, Callable[[], Iterable[str]]] = {
    "--target": _targets,
    "--recipe": _recipes,
    "--distill-preset": _distillations,
    "--hardware": _hardware,
    "--format": _formats,
}


def names_of(flag: str) -> Complete | None:
    """What completes the value of an option; `None` where brecq has no names for it."""
    find = _NAMES.get(flag)
    return None if find is None else lambda incomplete: [name for name in find() if name.startswith(incomplete)]
