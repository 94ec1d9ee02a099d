"""The optional dependencies of brecq: which are here, in which versions, and what each makes possible."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

from brecq.deploy.formats import FORMATS

_REQUIREMENT = re.compile(r"(?P<need>[^;]+?) *; *extra *== *['\"](?P<extra>[^'\"]+)['\"]")
_ENABLES = {
    "vision": "networks of timm and torchvision",
    "hf": "networks of transformers",
    "tasks": "metrics of tasks: detection, restoration",
    "search": "bits per layer: brecq search",
    "profile": "latency of layers on this machine: brecq profile",
    "hub": "results on the Hugging Face hub: brecq push, brecq.load",
    "qonnx": "executing QONNX files",
    "demo": "demo/demo.py: an ImageNet network and photographs",
    "docs": "the site of the documentation: make docs",
    "dev": "the tests and checks of brecq itself",
}


@dataclass(frozen=True)
class Extra:
    """What `pip install 'brecq[name]'` brings. `needs` are its requirements, such as `timm>=1.0.15`."""

    name: str
    enables: str
    needs: tuple[str, ...]

    def found(self) -> dict[str, str]:
        """The installed version of each package that it needs, by name; empty for one that is missing."""
        return {name: _installed(name) for name, _ in map(_split, self.needs)}

    def wrong(self) -> list[str]:
        """What is missing or too old, in words."""
        problems = []
        for name, least in map(_split, self.needs):
            found = _installed(name)
            if not found:
                problems.append(f"{name} is missing")
            elif _release(found) < _release(least):
                problems.append(f"{name} {found} is older than {least}")
        return problems


def extras() -> list[Extra]:
    """All extras as brecq was installed with; none where it runs from its sources alone."""
    try:
        matches = [_REQUIREMENT.fullmatch(line) for line in metadata.requires("brecq") or ()]
    except metadata.PackageNotFoundError:
        return []
    direct: dict[str, list[str]] = {}
    for match in matches:
        if match is not None:
            direct.setdefault(match["extra"], []).append(match["need"])
    return [Extra(name, enables(name), tuple(needs)) for name, needs in direct.items()]


def enables(name: str) -> str:
    """What an extra is for: the formats that need it, of several their names alone; or what is said of it here."""
    formats = [each.summary for each in FORMATS.values() if each.extra == name]
    if len(formats) > 1:
        return "files for " + ", ".join(summary.partition(":")[0] for summary in formats)
    return formats[0] if formats else _ENABLES[name]


def _split(requirement: str) -> tuple[str, str]:
    """Name and lowest version."""
    name, _, least = requirement.partition(">=")
    return name.strip(), least.strip()


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with; zeros at their end do not count."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers[0].split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
