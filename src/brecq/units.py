"""Numbers as people read them."""

from __future__ import annotations

import math


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


def megabytes(size: int) -> str:
    """`18.60`, `0.0107`, `0.000084`: two decimals, or three digits of what is smaller, to a byte."""
    if size >= 1e6:
        return f"{size / 1e6:.2f}"
    return f"{size / 1e6:.3g}" if size >= 100 or not size else f"{size / 1e6:.6f}"


def short_count(number: float) -> str:
    """`812`, `8.13 k`, `11.7 M`, `1.81 G`."""
    for unit in ("", " k", " M", " G"):
        if abs(number) < 999.5 or unit == " G":
            break
        number /= 1000
    return f"{number:.3g}{unit}"
