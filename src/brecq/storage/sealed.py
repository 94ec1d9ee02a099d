"""JSON that vouches for itself: canonical text that holds its own SHA-256, so that any change of it is seen."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

DIGEST = "sha256"
"""The last field: the hex digest of the text that is written without it."""


class Damaged(ValueError):
    """The text is not what `seal` wrote; the message says in what way."""


def render(values: Mapping[str, Any]) -> str:
    """Indented JSON; numbers that are not finite become null.

    Raises:
        TypeError, ValueError: a value does not fit into JSON.
    """
    return json.dumps(finite(values), indent=1, allow_nan=False) + "\n"


def seal(values: Mapping[str, Any]) -> str:
    """The text of a file that holds `values`, which are plain JSON values, and their digest."""
    return render({**values, DIGEST: digest(values)})


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of the rendered values without the field that holds it."""
    return hashlib.sha256(render({k: v for k, v in values.items() if k != DIGEST}).encode()).hexdigest()


def parse(content: bytes) -> dict[str, Any]:
    """The values of a file, before anything is known about them.

    Raises:
        Damaged: this is not JSON, or not an object.
    """
    try:
        values = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"it is not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise Damaged(f"it holds a {type(values).__name__}, not an object")
    return values


def check_seal(content: bytes, values: Mapping[str, Any]) -> None:
    """Raise `Damaged` unless `content` is, byte for byte, what `seal` writes for the `values` parsed from it."""
    if not isinstance(values.get(DIGEST), str):
        raise Damaged(f"it has no {DIGEST!r}")
    expected = digest(values)
    if values[DIGEST] != expected:
        raise Damaged(f"its content has the SHA-256 {expected}, it says {values[DIGEST]!r}")
    if seal(values).encode() != content:
        raise Damaged("it is not written as brecq writes it")


def unseal(content: bytes) -> dict[str, Any]:
    """The values that `seal` wrote, without the digest.

    Raises:
        Damaged: they were changed, in whatever way.
    """
    values = parse(content)
    check_seal(content, values)
    return {key: value for key, value in values.items() if key != DIGEST}


def finite(value: Any) -> Any:
    """JSON has no NaN or infinity (the SQNR of identical outputs, say): null stands for them."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
