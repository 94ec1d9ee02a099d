"""An ONNX graph as a PyTorch module: each operator a module under its name, its constants beside it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brecq.errors import BrecqError, SourceError
from brecq.names import as_variable
from brecq.sources.onnx_files.operators import OPERATORS, Call, Value

_WEIGHT = re.compile(r"(.+?)[._](?:weights?|kernel|w_\d+|W)$")
_ANONYMOUS = re.compile(r"(?:onnx::.*|\d+|_v_\d+|const_?fold.*|.*__\d+|val_\d+|)$")
_FORBIDDEN = re.compile(r"[^\w\-+/@ ]")


class Operator(nn.Module):
    """One operator; `slots` are the names of its constants by input."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Value) -> Any:
        self.call.inputs = list(inputs)
        try:
            return OPERATORS[self.call.kind](self.call)
        finally:
            self.call.inputs = []


def _parameters(inputs: Sequence[str]) -> list[str]:
    """What `forward` calls the inputs: their names in the file where Python allows these."""
    found: list[str] = []
    for name in inputs:
        plain = as_variable(name)
        while plain in found:
            plain += "_"
        found.append(plain)
    return found


def _forward(names: Sequence[str]) -> Callable[..., Any]:
    """A method with the parameters `names`, as `inspect` sees it too."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])

    def forward(self: OnnxModule, *inputs: Tensor, **named: Tensor) -> Any:
        return self.run(signature.bind(self, *inputs, **named).args[1:])

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward


class OnnxModule(nn.Module):
    """A network read from an ONNX file.

    It takes its inputs in the file's order or by their names, made into ones that Python allows (`images:0` is
    `images_0`; data to quantize or evaluate on may have either). It returns one tensor, or a dictionary by the names
    of the file's outputs.

    Attributes:
        steps: for each operator its module's path, the names of what it reads, and of what it makes.
    """

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.inputs, self.outputs = list(inputs), list(outputs)
        self.steps: list[tuple[str, list[str], list[str]]] = []
        self.hosts: dict[str, np.ndarray[Any, Any]] = {}
        self.places: dict[str, str] = {}

    @classmethod
    def of(cls, inputs: Sequence[str], outputs: Sequence[str]) -> OnnxModule:
        """A module of a class of its own: what a network takes is read off its class's `forward`."""
        made: type[OnnxModule] = type(cls.__name__, (cls,), {"forward": _forward(_parameters(inputs))})
        return made(inputs, outputs)

    def add(self, path: str, operator: Operator, inputs: Sequence[str], outputs: Sequence[str]) -> str:
        """Append an operator; returns its path, made unique."""
        path = self._free(path)
        owner: nn.Module = self
        *folders, last = path.split(".")
        for folder in folders:
            if folder not in owner._modules:
                owner.add_module(folder, nn.Module())
            owner = owner.get_submodule(folder)
        owner.add_module(last, operator)
        self.steps.append((path, list(inputs), list(outputs)))
        return path

    def hold(self, name: str, value: np.ndarray[Any, Any], path: str, attribute: str) -> None:
        """Keep a constant: numbers that shapes are made of on the host, all others as tensors beside their reader."""
        tensor = torch.from_numpy(np.array(value))
        owner = self.get_submodule(path)
        while hasattr(owner, attribute):
            attribute += "_"
        if tensor.is_floating_point():
            owner.register_parameter(attribute, nn.Parameter(tensor.float(), requires_grad=False))
        else:
            owner.register_buffer(attribute, tensor)
        self.places[name] = f"{path}.{attribute}"

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """What `forward` computes of the inputs in the file's order."""
        values: dict[str, Value] = dict(zip(self.inputs, inputs, strict=True))
        values[""] = None
        for path, reads, makes in self.steps:
            found = self.get_submodule(path)(*(self._value(name, values) for name in reads))
            found = found if isinstance(found, tuple) else (found,)
            values.update(zip(makes, found, strict=False))
        results = {name: self._value(name, values) for name in self.outputs}
        return next(iter(results.values())) if len(results) == 1 else results

    def _value(self, name: str, values: dict[str, Value]) -> Value:
        if name in values:
            return values[name]
        if name in self.hosts:
            return self.hosts[name]
        if name not in self.places:
            raise SourceError(f"the tensor {name!r} is a further output of an operator that brecq does not compute")
        path, _, attribute = self.places[name].rpartition(".")
        return getattr(self.get_submodule(path), attribute)

    def _free(self, path: str) -> str:
        """The path, or one like it that is neither taken nor a name of `nn.Module`'s own."""
        parts = [_FORBIDDEN.sub("_", part) or "_" for part in path.split(".")]
        parts = [f"{part}_" if hasattr(nn.Module, part) or part in ("call", "training") else part for part in parts]
        parts = [f"{part}_" if part in ("inputs", "outputs", "steps", "hosts", "places") else part for part in parts]
        base, count = ".".join(parts), 1
        taken = dict(self.named_modules())
        found = base
        while found in taken or any(isinstance(taken.get(prefix), Operator) for prefix in _prefixes(found)):
            count += 1
            found = f"{base}_{count}"
            if count > 2 and any(isinstance(taken.get(prefix), Operator) for prefix in _prefixes(found)):
                found = f"{base.replace('.', '_')}_{count}"
        return found


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")[:-1]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def path_of(kind: str, name: str, weight: str, output: str) -> str:
    """Where an operator lives: named by its weight, its node, or its output, the first that says something."""
    if weight and not _ANONYMOUS.match(weight):
        found = _WEIGHT.match(weight)
        return _dotted(found[1] if found else weight)
    tail = name.rstrip("/").rpartition("/")[2]
    if name and (re.fullmatch(rf"{kind}(_\d+)?", tail)) and "/" in name.strip("/"):
        inner = name.rstrip("/").rpartition("/")[0]
        return _dotted(inner if weight else name)
    return _dotted(name or output or kind)


def _dotted(name: str) -> str:
    return re.sub(r"\.+", ".", name.strip("/").replace("/", ".")).strip(".") or "operator"


def evaluate(kind: str, call: Call, inputs: Sequence[Value]) -> tuple[Value, ...]:
    """What an operator makes of constants.

    Raises:
        SourceError: it cannot be computed.
    """
    operator = Operator(call)
    try:
        with torch.no_grad():
            found = operator(*inputs)
    except BrecqError:
        raise
    except Exception as error:  # whatever PyTorch raises for operands that do not fit
        raise SourceError(f"{kind} of constants fails: {error}") from error
    return found if isinstance(found, tuple) else (found,)
