"""Quantize a named submodule alone: captured with the inputs that it really receives, and put back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brecq.errors import ConfigError
from brecq.forward import evaluating, even_slices


class Submodule:
    """A submodule of a model and the inputs it receives when the model runs on `inputs`.

    Attributes:
        module: the submodule, called with positional tensors only. inputs: what it receives, each [N, ...].

    Raises:
        ConfigError: there is no such submodule, it is not called exactly once per forward, or it receives something
            other than batches of tensors.
    """

    def __init__(self, model: nn.Module, name: str, inputs: Sequence[Tensor]) -> None:
        self.model, self.name = model, name
        modules = dict(model.named_modules())
        if name not in modules or not name:
            raise ConfigError(f"there is no submodule {name!r}; choose one of {', '.join(list(modules)[1:12])}, ...")
        self.module = modules[name]
        self.inputs = self._record(inputs)

    def put_back(self, quantized: nn.Module) -> nn.Module:
        """A copy of the model with the submodule replaced."""
        model = copy.deepcopy(self.model).eval()
        parent, _, child = self.name.rpartition(".")
        setattr(model.get_submodule(parent), child, quantized)
        return model

    @torch.no_grad()
    def _record(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        calls: list[tuple[Any, ...]] = []

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if kwargs or not all(isinstance(value, Tensor) for value in args):
                raise ConfigError(
                    f"submodule {self.name!r} is called with {len(kwargs)} keyword arguments and "
                    f"{[type(value).__name__ for value in args]}; only positional tensors can be recorded: choose "
                    "a submodule inside it"
                )
            calls.append(tuple(value.detach().cpu().clone() for value in args))

        handle = self.module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            batches = list(even_slices(len(inputs[0])))
            with evaluating(self.model):
                for rows in batches:
                    self.model(*(value[rows] for value in inputs))
        finally:
            handle.remove()
        if len(calls) != len(batches):
            raise ConfigError(
                f"submodule {self.name!r} is called {len(calls) / len(batches):g} times per forward pass; "
                "choose one that is called once"
            )
        return tuple(torch.cat(parts) for parts in zip(*calls, strict=True))
