"""What files call the outputs of a network."""

from __future__ import annotations

import unicodedata

from brecq.deploy.complete import Completed
from brecq.graph.outputs import returned


def output_names(completed: Completed) -> list[str]:
    """`output`; of several outputs the keys of the network's dictionaries, joined by dots (`head.boxes`, `levels.0`),
    behind `output_` where an input is called so. They are `output_0`, `output_1`, ... without any keys, and where
    files cannot tell values by them: one is empty, no text, or twice there (1 and "1")."""
    named = [name for name, _ in returned(completed.graph)]
    names = [f"output_{name}" if name in completed.inputs else name for name in named]
    only_places = all(part.isdigit() for name in names for part in name.split("."))
    told = all(map(_is_text, names)) and len({*names, *completed.inputs}) == len(names) + len(completed.inputs)
    return names if told and not only_places else _numbered(len(names))


def order_note(completed: Completed) -> tuple[str, ...]:
    """The order of a dictionary's outputs, for users of a file that knows them by number; empty for other outputs."""
    names = output_names(completed)
    if len(names) == 1 or names == _numbered(len(names)):
        return ()
    return (f"outputs have no names there, and come in this order: {', '.join(names)}",)


def _numbered(count: int) -> list[str]:
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _is_text(name: str) -> bool:
    return bool(name) and not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name)
