"""Which names of a network's parts and inputs a program can hold.

torch.fx writes them into Python text, attributes as `self.conv` or `getattr(self, "conv,1")`, and runs it. A name that
ends such a string, or that Python reads as something else, would be wrong in a network, and code in a file.
"""

from __future__ import annotations

import keyword
import re
import unicodedata

_ENDING = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of characters, ends of lines


def unwritable(path: str) -> str | None:
    """The first part of a dotted path that a program cannot hold as an attribute, or `None`."""
    return next((part for part in path.split(".") if not _attribute(part)), None)


def is_variable(name: str) -> bool:
    """True for a name that a program can hold as that of an input or of a value."""
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name


def as_variable(name: str) -> str:
    """A name that Python allows for an input, made of one that it may not: `images:0` is `images_0`."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    plain = plain if is_variable(plain) else f"input_{plain}"
    return f"{plain}_" if plain == "self" else plain


def _attribute(part: str) -> bool:
    if part.isidentifier():
        return is_variable(part)
    return bool(part) and not any(sign in '"\\' or unicodedata.category(sign) in _ENDING for sign in part)
