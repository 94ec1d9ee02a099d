"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def measure(name: str, value: float | None) -> str:
    """A metric's value under its name, which ends with its unit; empty for `None`.

    Decibels have one digit behind the point if they are of a ratio, shares and other decibels two, or as many more as
    tell them from 0 and 100: 0.004 % of flips are some; everything else five digits that count.
    """
    if value is None:
        return ""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if name == "SQNR dB":
        return f"{value:.1f}"
    if not name.endswith((" %", " dB")):
        return f"{value:.5g}"
    digits = 2
    while name.endswith(" %") and digits < 9 and value not in (0, 100) and round(value, digits) in (0, 100):
        digits += 1
    return f"{value:.{digits}f}"


def significant(value: float) -> str:
    """`0.120`, `1.00`, `250`, `0.000513`: three digits that count."""
    return f"{value:#.3g}".rstrip(".")


def format_bytes(size: float) -> str:
    """`84 B`, `10.68 kB`, `18.60 MB`: four digits, in decimal units."""
    number, unit = _scaled(size, ("B", "kB", "MB", "GB"), digits=4)
    return f"{number:{'.4g' if unit == 'B' else '#.4g'}} {unit}"


def short_count(number: float) -> str:
    """`812`, `8.13 k`, `11.7 M`, `1.81 G`."""
    scaled, unit = _scaled(number, ("", " k", " M", " G"), digits=3)
    return f"{scaled:.3g}{unit}"


def _scaled(number: float, units: Sequence[str], digits: int) -> tuple[float, str]:
    """In the first of the units, each a thousand of the one before, in which it is below 1000 once it is rounded."""
    for unit in units[:-1]:
        if abs(float(f"{number:.{digits}g}")) < 1000:
            return number, unit
        number /= 1000
    return number, units[-1]
