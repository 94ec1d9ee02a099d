"""What a network's `forward` takes, and which part of a batch is which of its inputs, or the labels.

Batches that are dictionaries are matched by name. Of tuples the parts go by position, and only what `forward` has no
place for can be a label; where it has room for a label that nobody asked it to take, the network itself is asked. A
parameter with a default of its own (`scale=1.0`) is no place for a part; what is no class index, and what the network
would take there, is refused, as it may be meant for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from brecq.data.dataset import Dataset
from brecq.errors import DataError
from brecq.forward import Inputs, evaluating, unwrap
from brecq.names import as_variable

LABEL_KEYS = ("label", "labels", "y", "target", "targets")

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Layout:
    """Which parts of a batch are inputs, and which is the label: their keys in a dictionary, or places in a tuple.

    Attributes:
        inputs: in the order of `forward`'s parameters. label: `None` without.
    """

    inputs: tuple[str, ...] | tuple[int, ...]
    label: str | int | None = None

    def names(self, signature: Signature | None) -> list[str]:
        """What the inputs are called: as `forward` does where it is known, or by their places."""
        names = list(map(str, self.inputs))
        if isinstance(self.inputs[0], str) or signature is None:
            return names
        return [*signature.by_position, *names[len(signature.by_position) :]][: len(names)]

    def describe(self, signature: Signature | None, *, usable: bool = True) -> str:
        """What went where; empty for a single input that nothing lies beside. `usable`: the label is a class index."""
        names, named = self.names(signature), isinstance(self.inputs[0], str)
        found = f"{', '.join(names)} by {'name' if named else 'position'}" if named or len(names) > 1 else ""
        if self.label is None:
            return found
        label = repr(self.label) if named else "the last part of each batch"
        what = f"taken as the {'label' if usable else 'target'}, not given to the network"
        return f"{found}{'; ' if found else ''}{label} {what}"


class Signature:
    """The parameters of a network's `forward`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrap(model)
        try:
            parameters = list(inspect.signature(self.model.forward).parameters.values())
        except (TypeError, ValueError):  # scripted modules: anything goes, and the call itself will tell
            parameters = [inspect.Parameter(name, kind) for name, kind in (
                ("args", inspect.Parameter.VAR_POSITIONAL), ("kwargs", inspect.Parameter.VAR_KEYWORD))]  # fmt: skip
        kinds = {parameter.kind for parameter in parameters}
        self.any_position = inspect.Parameter.VAR_POSITIONAL in kinds
        self.any_name = inspect.Parameter.VAR_KEYWORD in kinds
        own = [p for p in parameters if p.kind in (*_BY_POSITION, inspect.Parameter.KEYWORD_ONLY)]
        self.names = [p.name for p in own]
        self.required = {p.name for p in own if p.default is p.empty}
        self.only_by_position = [p.name for p in own if p.kind is p.POSITIONAL_ONLY]
        # an option such as `return_dict=True` is no place for a tensor, and none behind it can be reached
        free = list(takewhile(lambda p: p.kind in _BY_POSITION and (p.default is p.empty or p.default is None), own))
        self.by_position = [p.name for p in free]
        option = next((p for p in own[len(free) :] if p.kind in _BY_POSITION), None)
        takes_numbers = option is not None and isinstance(option.default, (int, float, Tensor))
        self.numeric = [option.name] if option and takes_numbers and not isinstance(option.default, bool) else []
        text = ", ".join(f"{p}".partition(":")[0].partition("=")[0] + ("" if p.name in self.required or "*" in f"{p}"
                         else "=…") for p in parameters)  # fmt: skip
        self.text = f"{type(self.model).__name__}.forward({text})"

    def own_names(self, given: Sequence[str]) -> list[str]:
        """The names `given` to inputs as `forward` calls them: it has variables for a file's names that are none."""
        made = [as_variable(name) if isinstance(name, str) and name not in self.names else name for name in given]
        known = [name in self.names and made.count(name) == 1 for name in made]
        return [new if sure else name for name, new, sure in zip(given, made, known, strict=True)]

    def among(self, given: Sequence[str]) -> list[str]:
        """Those of the names `given` to arrays that are inputs; none, unless they are all that `forward` needs."""
        own = dict(zip(given, self.own_names(given), strict=True))
        wanted = {name for name in self.names if name in self.required or name not in LABEL_KEYS}
        found = [name for name in given if own[name] in wanted]
        return found if self.required <= {own[name] for name in found} else []

    def by_name(self, given: Mapping[str, object], where: str) -> Layout:
        """The layout of a dictionary.

        Raises:
            DataError: a key that `forward` does not know, one that it needs and does not get, several labels; it takes
                the dictionary itself.
        """
        labels = [key for key in given if key in LABEL_KEYS and key not in self.required]
        if len(labels) > 1:
            raise DataError(f"{where} has several labels ({', '.join(labels)}); keep one of them")
        keys = [key for key in given if key not in labels]
        unknown = [key for key in keys if key not in self.names and not self.any_name]
        if unknown:
            if advice := self.of_dictionary(list(given.values()), given):
                raise DataError(advice)
            raise DataError(
                f"{where} holds {_quoted(given)}, and {self.text} takes no {_quoted(unknown)}; "
                "leave that out, or name it as forward does"
            )
        missing = [name for name in self.names if name in self.required and name not in keys]
        if missing:
            raise DataError(f"{where} holds {_quoted(keys)}, but {self.text} needs {_quoted(missing)} too")
        keys.sort(key=lambda key: self.names.index(key) if key in self.names else len(self.names))
        if any(key in self.only_by_position for key in keys) and keys != self.names[: len(keys)]:
            raise DataError(f"{where} holds {_quoted(keys)}, but {self.text} takes inputs by position: give tuples")
        return Layout(tuple(keys), labels[0] if labels else None)

    def by_place(self, parts: Sequence[object], where: str) -> Layout:
        """The layout of a tuple with the `parts`, each a batch of one or more samples.

        Raises:
            DataError: too few or too many parts, or a last one that may be an input or a label.
        """
        count = len(parts)
        needed = [name for name in self.names if name in self.required]
        keyword = [name for name in needed if name not in self.by_position]
        if keyword or count < len(needed):
            missing = keyword or needed[count:]
            raise DataError(
                f"{where} has {_parts(count)}, but {self.text} needs {_quoted(missing)} too; "
                "give tuples with one part per input, or dictionaries"
            )
        most = count if self.any_position else len(self.by_position)
        if count > most + 1:
            raise DataError(
                f"{where} has {_parts(count)}, but {self.text} takes {most} and one label; drop the others"
            )
        if count > most:
            if self.numeric and not is_class_index(parts[-1]) and not self._changes_nothing(parts):
                raise DataError(self._either(where, count))
            return Layout(tuple(range(count - 1)), count - 1)
        if count == 1 or count <= len(needed):
            return Layout(tuple(range(count)))
        name = self.by_position[count - 1] if count <= len(self.by_position) else ""
        if name not in LABEL_KEYS:
            found, without = self.outputs(parts), self.outputs(parts[:-1])
            if without is None:
                return Layout(tuple(range(count)))
            # an input that changes nothing may be a neutral one, such as a mask of ones
            if found is not None and not (is_class_index(parts[-1]) and _equal(found, without)):
                raise DataError(self._either(where, count))
        return Layout(tuple(range(count - 1)), count - 1)

    def _either(self, where: str, count: int) -> str:
        """That the last of `count` parts may be two things."""
        names = [*self.by_position, *self.numeric][:count]
        return (
            f"{where} has {_parts(count)}, and {self.text} also runs without the last one: it may be an input or "
            f"a label; give dictionaries ({{{', '.join(f'{n!r}: …' for n in names) or '…'}}}; a label under 'label'), "
            "or a brecq.Dataset"
        )

    def bind(self, dataset: Dataset) -> Dataset:
        """The dataset with its inputs in the order of `forward`.

        Raises:
            DataError: `forward` does not take them.
        """
        if not dataset.keys:
            needed, room = [name for name in self.names if name in self.required], len(self.by_position)
            count = len(dataset.inputs)
            if count < len(needed) or (count > room and not self.any_position):
                raise DataError(
                    f"the data has {count} input{'s' if count > 1 else ''} by position, and {self.text} takes "
                    f"{len(needed) if count < len(needed) else room}; give one tensor for each"
                )
            return dataset
        dataset = replace(dataset, keys=tuple(self.own_names(dataset.keys)))
        layout = self.by_name(dict(zip(dataset.keys, dataset.inputs, strict=True)), "the data")
        if layout.label is not None:
            raise DataError(f"the input {layout.label!r} of the data would be a label for {self.text}; rename it")
        order = [dataset.keys.index(str(key)) for key in layout.inputs]
        keys = () if self.only_by_position else tuple(map(str, layout.inputs))
        inputs = tuple(dataset.inputs[place] for place in order)
        return replace(dataset, inputs=inputs, keys=keys, origin=dataset.origin or layout.describe(self))

    def order(self, inputs: Inputs) -> Inputs:
        """Inputs by name in the order of `forward`; by position as they are.

        Raises:
            DataError: `forward` does not take them.
        """
        if not isinstance(inputs, Mapping):
            return tuple(inputs)
        return self.bind(Dataset(tuple(inputs.values()), keys=tuple(inputs))).arguments()

    def knows(self, names: Collection[str]) -> bool:
        """True if all `names` are parameters of `forward`, or say that they are labels."""
        return all(name in self.names or name in LABEL_KEYS for name in names)

    def of_dictionary(self, inputs: Sequence[object], named: Mapping[str, object] | None = None) -> str:
        """What to do about a `forward` that looks the `inputs` up in a dictionary, its only argument; empty if it does
        not, or takes several."""
        asked = _Asked(inputs, named or {})
        if len(self.required) == 1:
            self.outputs([asked])
        if not asked.keys_asked:
            return ""
        names = {key: as_variable(key) for key in asked.keys_asked}
        entries = ", ".join(f"{key!r}: {name}" for key, name in names.items())
        return (
            f"{self.text} takes a dictionary with {_quoted(names)}, and what is quantized takes tensors: quantize "
            "Wrapped(network) instead\nclass Wrapped(torch.nn.Module):\n"
            "    def __init__(self, network): super().__init__(); self.network = network\n"
            f"    def forward(self, {', '.join(names.values())}): return self.network({{{entries}}})"
        )

    def _changes_nothing(self, parts: Sequence[object]) -> bool:
        """True if the network cannot take the last part, or computes the same without it."""
        found, without = self.outputs(parts), self.outputs(parts[:-1])
        if found is None or without is None:
            return without is not None
        return _equal(found, without)

    @torch.no_grad()
    def outputs(self, parts: Sequence[object]) -> list[Tensor] | None:
        """The outputs on a sample or two of a batch, `None` if the network does not take them.

        Args:
            parts: by position; tensors [N, ...], or lists of one tensor a sample.
        """
        place = next((value for value in (*self.model.parameters(), *self.model.buffers())), torch.zeros(()))
        few = pytree.tree_map_only(Tensor, lambda value: value.to(place.device, copy=True), list(map(_few, parts)))
        try:
            with evaluating(self.model):
                return [x for x in pytree.tree_leaves(self.model(*few)) if isinstance(x, Tensor)]
        except Exception:  # the question is whether it runs; a network's code raises whatever it likes
            return None


class _Asked(dict[str, Any]):
    """A dictionary that remembers what is looked up in it. A key that it does not have gets the next of the `inputs`.

    Attributes:
        keys_asked: in the order in which they were.
    """

    def __init__(self, inputs: Sequence[object], named: Mapping[str, object]) -> None:
        super().__init__((key, _few(value)) for key, value in named.items())
        self.inputs = [_few(value) for value in inputs]
        self.keys_asked: list[str] = []

    def __getitem__(self, key: str) -> Any:
        if not isinstance(key, str):  # a list, or a tensor, is asked otherwise
            raise KeyError(key)
        if key not in self.keys_asked:
            self.keys_asked.append(key)
        if key not in self:
            self[key] = self.inputs.pop(0)
        return super().__getitem__(key)


def _few(part: object) -> object:
    """A sample or two of a batch."""
    return part[:2] if isinstance(part, list) or (isinstance(part, Tensor) and part.ndim) else part


def _equal(found: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(found) == len(others) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(found, others, strict=True)
    )


def is_class_index(value: object) -> bool:
    """True for integers, one a sample: what can be compared with the largest of the scores."""
    if not isinstance(value, Tensor) or value.ndim != 1:
        return False
    return not value.is_floating_point() and value.dtype != torch.bool


def _quoted(names: Collection[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _parts(count: int) -> str:
    return f"{count} part{'' if count == 1 else 's'}"
