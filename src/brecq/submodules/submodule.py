"""Quantize a named submodule alone: captured with the inputs that it really receives, and put back."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from brecq.devices import device_of
from brecq.errors import ConfigError
from brecq.forward import Inputs, call, evaluating, even_slices, like, tensors
from brecq.text import some


class Submodule:
    """A submodule of a model and the inputs it receives when the model runs on `inputs`.

    Attributes:
        module: the submodule. inputs: the tensors that it receives, each [N, ...], by position or by name as it is
            called. Arguments that are no tensors and equal the default of their parameter are left out.

    Raises:
        ConfigError: there is no such submodule, it is not called exactly once per forward, or it receives something
            other than batches of tensors.
    """

    def __init__(self, model: nn.Module, name: str, inputs: Inputs) -> None:
        self.model, self.name = model, name
        modules = dict(model.named_modules())
        if name not in modules or not name:
            raise ConfigError(f"there is no submodule {name!r}; choose one of {some(list(modules)[1:], 11)}")
        self.module = modules[name]
        self._defaults = _defaults(self.module)
        self._plain = True  # called with nothing but tensors
        self.inputs = self._record(inputs)

    def put_back(self, quantized: nn.Module) -> nn.Module:
        """A copy of the model with the submodule replaced."""
        model = copy.deepcopy(self.model).eval()
        parent, _, child = self.name.rpartition(".")
        replacement = quantized if self._plain else _TensorsOnly(quantized, list(self._defaults))
        setattr(model.get_submodule(parent), child, replacement)
        return model

    @torch.no_grad()
    def _record(self, inputs: Inputs) -> Inputs:
        calls: list[dict[str, Tensor]] = []

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            names = list(self._defaults)
            given = dict(zip([*names, *map(str, range(len(names), len(args)))], args, strict=False)) | kwargs
            received = {key: value for key, value in given.items() if isinstance(value, Tensor)}
            other = {key: value for key, value in given.items() if key not in received}
            strange = [key for key, value in other.items() if not self._is_default(key, value)]
            if strange:
                found = ", ".join(f"{key}={type(other[key]).__name__}" for key in strange)
                raise ConfigError(
                    f"submodule {self.name!r} is called with {found}; only tensors can be recorded: choose a "
                    "submodule inside it"
                )
            self._plain &= not other
            calls.append({key: value.detach().cpu().clone() for key, value in received.items()})
            self._by_name = bool(other or kwargs)

        values, home = tensors(inputs), device_of(self.model)
        handle = self.module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            batches = list(even_slices(len(values[0])))
            with evaluating(self.model):
                for rows in batches:
                    call(self.model, like(inputs, [value[rows].to(home) for value in values]))
        finally:
            handle.remove()
        if len(calls) != len(batches):
            raise ConfigError(
                f"submodule {self.name!r} is called {len(calls) / len(batches):g} times per forward pass; "
                "choose one that is called once"
            )
        joined = {key: torch.cat([received[key] for received in calls]) for key in calls[0]}
        return joined if self._by_name else tuple(joined.values())

    def _is_default(self, name: str, value: Any) -> bool:
        default = self._defaults.get(name, _MISSING)
        return type(value) is type(default) and bool(value == default)


_MISSING = object()


class _TensorsOnly(nn.Module):
    """In the place of a submodule that is called with more than tensors: hands the tensors on, by name."""

    def __init__(self, quantized: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.quantized, self.names = quantized, names

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self.names, args, strict=False)) | kwargs
        return self.quantized(**{key: value for key, value in given.items() if isinstance(value, Tensor)})


def _defaults(module: nn.Module) -> dict[str, Any]:
    """The named parameters of a module's `forward` and their defaults."""
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {p.name: _MISSING if p.default is p.empty else p.default for p in named}
