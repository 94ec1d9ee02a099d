"""Leaving a model as it is while it runs: what its `forward` writes is undone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_STORES = ("_parameters", "_buffers")


@contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Afterwards the models' parameters, buffers, modes and other attributes are the same, bit for bit.

    Tensors are copied when an operator is about to write into them, not before: it costs memory for those alone.
    Lists, dictionaries and sets among the attributes hold what they held before: detectors keep grids and anchors
    there, which are symbols without values after an export, and torch hooks and submodules. What a model changes
    inside other objects stays changed.
    """
    modules = list(dict.fromkeys(module for model in models for module in model.modules()))
    attributes = [(module, dict(module.__dict__), [dict(getattr(module, s)) for s in _STORES]) for module in modules]
    kept = _contents([own for _, own, _ in attributes])
    tensors = [value for _, _, stores in attributes for store in stores for value in store.values()]
    memory = [(value, value.detach()) for value in tensors if value is not None]
    writes = _Writes([alias for _, alias in memory])
    try:
        with writes:
            yield
    finally:
        for module, own, stores in attributes:
            for name, store in zip(_STORES, stores, strict=True):
                _restore(getattr(module, name), store)
            _restore(module.__dict__, own)
        for container, content in kept:
            _refill(container, content)
        for value, alias in memory:
            if value.data_ptr() != alias.data_ptr():
                value.data = alias
        writes.undo()


def _restore(found: dict[str, Any], before: dict[str, Any]) -> None:
    for name in found.keys() - before.keys():
        del found[name]
    for name, value in before.items():
        if name not in found or found[name] is not value:
            found[name] = value


_Container = list[Any] | dict[Any, Any] | set[Any]


def _contents(attributes: Sequence[dict[str, Any]]) -> list[tuple[_Container, _Container]]:
    """Each list, dictionary and set among the attributes of modules, and inside such ones, with a copy of it.

    Hooks are among them, which networks of transformers give themselves when they first run.
    """
    stack = [value for each in attributes for name, value in each.items() if name not in _STORES]
    found: dict[int, tuple[_Container, _Container]] = {}
    while stack:
        value = stack.pop()
        if type(value) is tuple:
            stack.extend(value)
        elif isinstance(value, (list, dict, set)) and id(value) not in found:
            found[id(value)] = (value, value.copy())
            stack.extend(value.values() if isinstance(value, dict) else value)
    return list(found.values())


def _refill(container: Any, content: Any) -> None:
    """Give a container its former elements, where they are not the same objects in the same order."""
    same = len(container) == len(content) and all(
        a is b for a, b in zip(_flat(container), _flat(content), strict=True)
    )
    if not same:
        container.clear()
        container.extend(content) if isinstance(container, list) else container.update(content)


def _flat(container: _Container) -> list[Any]:
    return [*container, *container.values()] if isinstance(container, dict) else [*container]


class _Writes(TorchDispatchMode):
    """Copies what lies in the memory of some tensors when an operator first writes there."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.watched: dict[int, list[Tensor]] = {}
        self.copies: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            self.watched.setdefault(_memory(tensor), []).append(tensor)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _written(func, args, kwargs):
            memory = _memory(tensor)
            if memory in self.watched and memory not in self.copies:
                self.copies[memory] = [watched.clone() for watched in self.watched[memory]]
        return func(*args, **kwargs)

    @torch.no_grad()
    def undo(self) -> None:
        for memory, copies in self.copies.items():
            for tensor, value in zip(self.watched[memory], copies, strict=True):
                tensor.copy_(value)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    found = []
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[i] if i < len(args) and not argument.kwarg_only else kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    return found


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # tensors without memory: sparse, fake or of another library
        return 0
