"""Several submodules of a network: recorded with what they are called with, and replaced by quantized programs.

A submodule may take and return tensors in any containers that PyTorch knows (a list of feature maps, a dictionary).
For the program that is captured of it they are one flat list of tensors, `Flat`; `DropIn` is the way back.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from brecq.errors import ConfigError, DataError
from brecq.forward import call, evaluating, tensors
from brecq.placement.plan import End
from brecq.text import some

REGIONS = 16
"""Rows that are kept for each sample of the network where a submodule receives more (regions, windows)."""

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Interface:
    """How a submodule is called, in values that JSON can hold.

    Attributes:
        inputs: the containers of its arguments, positional and by name. leaves: what is in them, `[]` for a tensor,
            `[value]` for anything else (a size, a flag). output: the containers of what it returns, empty where
            PyTorch does not know them: then they are dictionaries, tuples and lists.
    """

    inputs: str
    leaves: list[list[Any]]
    output: str

    def flatten(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call, in order.

        Raises:
            ConfigError: it is another kind of call than the recorded one.
        """
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        found = [[] if isinstance(leaf, Tensor) else [leaf] for leaf in leaves]
        if pytree.treespec_dumps(spec) != self.inputs or found != self.leaves:
            raise ConfigError(
                f"submodule {name!r} is called with {_shown(found)}, and was quantized for {_shown(self.leaves)}; "
                "call the network as for the calibration"
            )
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def rebuild(self, output: Any) -> Any:
        """What the program returned, in the containers of the submodule."""
        if not self.output:
            return output
        return pytree.tree_unflatten(pytree.tree_leaves(output), pytree.treespec_loads(self.output))

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call that these tensors belong to."""
        given = iter(tensors)
        leaves = [leaf[0] if leaf else next(given) for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, pytree.treespec_loads(self.inputs))
        return tuple(args), kwargs


@dataclass(frozen=True)
class Part:
    """One submodule and what it received.

    Attributes:
        inputs: its tensors, each [M, ...], on the CPU; of regions a share, see `REGIONS`. rows: what each call of the
            network brought, before that.
        first: nothing of the others was called before it. last: none of the others receives what it returns.
    """

    name: str
    interface: Interface
    inputs: tuple[Tensor, ...]
    rows: tuple[int, ...]
    first: bool
    last: bool

    @property
    def ends(self) -> frozenset[End]:
        """Of the network, those that it holds."""
        found: list[End] = ["first"] * self.first + ["last"] * self.last  # type: ignore[assignment]
        return frozenset(found)


class Flat(nn.Module):
    """A submodule under its own path, called with its tensors in order, each [M, ...]."""

    def __init__(self, name: str, module: nn.Module, interface: Interface) -> None:
        super().__init__()
        self._path, self._interface = name, interface
        owner: nn.Module = self
        *folders, last = name.split(".")
        for folder in folders:
            owner.add_module(folder, nn.Module())
            owner = owner.get_submodule(folder)
        owner.add_module(last, module)

    def forward(self, *inputs: Tensor) -> Any:
        args, kwargs = self._interface.arguments(inputs)
        return self.get_submodule(self._path)(*args, **kwargs)


class DropIn(nn.Module):
    """In the place of a submodule: a program that takes its tensors in order. `original`: whose attributes others may
    read (a number of channels)."""

    def __init__(self, name: str, program: nn.Module, interface: Interface, original: nn.Module) -> None:
        super().__init__()
        self.program = program
        self._path, self._interface = name, interface
        for key, value in vars(original).items():
            if not key.startswith("_") and key not in vars(self):
                setattr(self, key, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._interface.rebuild(self.program(*self._interface.flatten(self._path, args, kwargs)))


def put_back(model: nn.Module, programs: Mapping[str, tuple[nn.Module, Interface]]) -> nn.Module:
    """A copy of the model, in eval mode, with programs in the place of submodules.

    Raises:
        ConfigError: the model has no submodule of such a name.
    """
    modules = dict(model.named_modules())
    missing = next((name for name in programs if name not in modules), None)
    if missing is not None:
        raise ConfigError(f"{type(model).__name__} has no submodule {missing!r}: another network; {_some(modules)}")
    replaced = {id(modules[name]): DropIn(name, *made, modules[name]) for name, made in programs.items()}
    copied = copy.deepcopy(model, dict(replaced))
    for module in copied.modules():  # captured graphs refuse eval(): they have that mode alone
        module.training = False
    return copied


def check_names(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The names, if they are distinct submodules and none is inside another.

    Raises:
        ConfigError: they are not.
    """
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"submodules is {names!r}; give a list of names, such as ['backbone', 'head']")
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules or not name:
            raise ConfigError(f"there is no submodule {name!r}; {_some(modules)}")
        if list(names).count(name) > 1:
            raise ConfigError(f"submodule {name!r} is named twice; name it once")
        outer = next((other for other in names if name.startswith(f"{other}.")), None)
        if outer is not None:
            raise ConfigError(f"submodule {name!r} is inside {outer!r}; name one of them")
    return list(names)


@torch.no_grad()
def record(model: nn.Module, names: Sequence[str], calls: Sequence[Any]) -> list[Part]:
    """Run the model on every call and record what the named submodules receive, in the order they are called in.

    Args:
        calls: what the model is called with: `Inputs`, or a list of pictures.

    Raises:
        ConfigError: a submodule is not called once per forward pass, or receives something that is neither a tensor
            nor a plain value, or in changing containers. DataError: tensors whose samples differ in size.
    """
    modules = dict(model.named_modules())
    recorders = {name: _Recorder(name) for name in names}
    order: list[str] = []
    handles = []
    for name, recorder in recorders.items():
        handles += [
            modules[name].register_forward_pre_hook(recorder.before(order), with_kwargs=True),
            modules[name].register_forward_hook(recorder.after),
        ]
    try:
        with evaluating(model):
            for number, inputs in enumerate(calls):
                for recorder in recorders.values():
                    recorder.samples = samples_of(inputs)
                run(model, inputs)
                for recorder in recorders.values():
                    recorder.check_called(number + 1)
                _note_received(list(recorders.values()))
    finally:
        for handle in handles:
            handle.remove()
    called = list(dict.fromkeys(order))
    return [recorders[name].part(first=name == called[0]) for name in called]


def run(model: nn.Module, inputs: Any) -> Any:
    """The model's output for one call: `Inputs`, or a list of pictures, which it takes as one argument."""
    device = next((value.device for value in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    moved = pytree.tree_map_only(Tensor, lambda value: value.to(device), inputs)
    return model([picture.clone() for picture in moved]) if isinstance(inputs, list) else call(model, moved)


def samples_of(inputs: Any) -> int:
    """How many samples a call holds."""
    return len(inputs) if isinstance(inputs, list) else len(tensors(inputs)[0])


def _note_received(recorders: Sequence[_Recorder]) -> None:
    """A submodule is none of the last if another receives what it returned."""
    for maker in recorders:
        for reader in recorders:
            maker.handed_on |= reader is not maker and bool(maker.returned & reader.received)
    for recorder in recorders:
        recorder.returned, recorder.received = set(), set()


class _Recorder:
    """What one submodule receives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples = 0
        self.calls: list[list[Tensor]] = []
        self.rows: list[int] = []
        self.interface: Interface | None = None
        self.returned: set[int] = set()
        self.received: set[int] = set()
        self.handed_on = False

    def before(self, order: list[str]) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            order.append(self.name)
            leaves, spec = pytree.tree_flatten((args, kwargs))
            found = [[] if isinstance(leaf, Tensor) else [self._plain(leaf)] for leaf in leaves]
            text = pytree.treespec_dumps(spec)
            if self.interface is None:
                self.interface = Interface(text, found, "")
            elif (self.interface.inputs, self.interface.leaves) != (text, found):
                raise ConfigError(
                    f"submodule {self.name!r} is called with {_shown(self.interface.leaves)}, then with "
                    f"{_shown(found)}; choose one that is always called alike"
                )
            values = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            sizes = {value.shape[0] if value.dim() else -1 for value in values}
            if len(sizes) != 1 or sizes == {-1}:
                shapes = ", ".join(str(list(value.shape)) for value in values) or "no tensor"
                raise ConfigError(
                    f"submodule {self.name!r} receives {shapes}: no batch [N, ...]; choose another submodule"
                )
            self.received = _places(values)
            self.calls.append([self._kept(value).detach().cpu().clone() for value in values])
            self.rows.append(sizes.pop())

        return hook

    def after(self, _module: nn.Module, _args: Any, output: Any) -> None:
        leaves, spec = pytree.tree_flatten(output)
        self.returned = _places(leaves)
        assert self.interface is not None
        if not self.interface.output and all(isinstance(leaf, Tensor) for leaf in leaves):
            self.interface = replace(self.interface, output=pytree.treespec_dumps(spec))

    def _kept(self, value: Tensor) -> Tensor:
        """At most `REGIONS` rows for each sample of the network, spread over them all."""
        most = REGIONS * self.samples
        return value if len(value) <= most else value[torch.arange(most) * len(value) // most]

    def check_called(self, number: int) -> None:
        if len(self.calls) != number:
            raise ConfigError(
                f"submodule {self.name!r} is called {len(self.calls) - number + 1} times per forward pass; choose one "
                "that is called once"
            )

    def part(self, *, first: bool) -> Part:
        assert self.interface is not None
        shapes = [[tuple(value.shape[1:]) for value in received] for received in self.calls]
        other = next((found for found in shapes if found != shapes[0]), None)
        if other is not None:
            raise DataError(
                f"submodule {self.name!r} receives samples of {_sizes(shapes[0])} and of {_sizes(other)}; calibrate "
                "on inputs of one size"
            )
        joined = tuple(torch.cat(column) for column in zip(*self.calls, strict=True))
        if not len(joined[0]):
            raise DataError(f"submodule {self.name!r} receives no samples: the network finds nothing in the inputs")
        return Part(self.name, self.interface, joined, tuple(self.rows), first, not self.handed_on)

    def _plain(self, leaf: Any) -> Any:
        if not isinstance(leaf, _PLAIN):
            raise ConfigError(
                f"submodule {self.name!r} receives a {type(leaf).__name__}; only tensors and plain values can be "
                "recorded: choose a submodule inside it"
            )
        return leaf


def _places(leaves: Sequence[Any]) -> set[int]:
    """Where tensors are in memory; empty ones are nowhere."""
    return {leaf.data_ptr() for leaf in leaves if isinstance(leaf, Tensor) and leaf.numel()}


def _shown(leaves: Sequence[list[Any]]) -> str:
    return ", ".join(json.dumps(leaf[0], default=str) if leaf else "a tensor" for leaf in leaves)


def _sizes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)


def _some(modules: Mapping[str, nn.Module]) -> str:
    return f"choose of {some(list(modules)[1:], 11)}"
