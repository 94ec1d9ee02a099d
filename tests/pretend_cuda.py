"""A pretended CUDA device in main memory, for machines that have none: what mixes devices is refused, as CUDA does.

    python -m pytest -p pretend_cuda tests/test_cuda.py -k "not waits and not compiled"     # PYTHONPATH=src:tests

Which tensors are there is known by their memory. Operators with tensors here and there are errors (numbers in tensors
without dimensions and, for indexing, indices excepted), as are `numpy` of a tensor there and random numbers made there
by a generator of the CPU. Kernels, streams, and what waits for what are not pretended. `torch.export` sees through it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)

_memory: dict[int, Any] = {}
"""The storages that are there. They are kept: another one at the same address would be taken for one of them."""

_seen_through = 0

_ANY_DEVICES = {"copy_", "copy", "set_", "_local_scalar_dense"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Mixed(RuntimeError):
    """What CUDA would refuse."""


@contextlib.contextmanager
def seen_through() -> Iterator[None]:
    """Inside, there is only the CPU."""
    global _seen_through
    _seen_through += 1
    try:
        yield
    finally:
        _seen_through -= 1


def _is_real(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and not isinstance(value, FakeTensor)
        and not value.is_meta
        and value.layout == torch.strided
    )


def _address(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def is_there(value: Any) -> bool:
    return _is_real(value) and _address(value) in _memory


def _put_there(values: Any) -> None:
    for value in pytree.tree_leaves(values):
        if _is_real(value):
            _memory[_address(value)] = value.untyped_storage()


def _names_cuda(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def _moved(value: Tensor, device: torch.device, copy: bool) -> Tensor:
    if not _is_real(value) or (is_there(value) == (device.type == "cuda") and not copy):
        return value
    with seen_through():
        found = value.clone()
    _memory.pop(_address(found), None)
    if device.type == "cuda":
        _put_there(found)
    return found


class _Operators(TorchDispatchMode):
    """What is computed from tensors there is there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if _seen_through or name in _ANY_DEVICES:
            return found
        tensors = [value for value in pytree.tree_leaves((args, kwargs)) if _is_real(value)]
        tensors = tensors[:1] if name in _INDEXING else tensors
        places = [is_there(value) for value in tensors]
        if any(places):
            if not all(there or not value.dim() for there, value in zip(places, tensors, strict=True)):
                shapes = [(tuple(value.shape), "cuda" if there else "cpu") for there, value in zip(places, tensors)]  # noqa: B905
                raise Mixed(f"{func}: expected all tensors to be on the same device, got {shapes}")
            _put_there(found)
        return found


class _Functions(TorchFunctionMode):
    """What names a device, or asks for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if _seen_through:
            return func(*args, **kwargs)
        if first is not None:
            if func == Tensor.device.__get__ and is_there(first):
                return CUDA
            if func == Tensor.is_cuda.__get__:
                return is_there(first)
            if name == "numpy" and is_there(first):
                raise Mixed("can't convert a cuda tensor to numpy")
            if name == "__deepcopy__" and is_there(first):
                found = func(*args, **kwargs)
                _put_there(found)
                return found
            if name == "pin_memory":
                return first
            if name == "backward":  # this mode is off while it handles a function, and `backward` runs others
                seed = (torch.ones_like(first),)
                with _Functions():
                    return _engine_run_backward((first,), seed, False, False, (), True, accumulate_grad=True)
            if name in ("cpu", "cuda"):
                return _moved(first, torch.device(name), copy=False)
            if name == "to":
                return _to(func, first, list(args[1:]), kwargs)
        if kwargs.get("generator") is not None and (_names_cuda(kwargs.get("device")) or is_there(first)):
            raise Mixed(f"{name}: expected a 'cuda' device type for generator but found 'cpu'")
        if kwargs.pop("pin_memory", False):
            return func(*args, **kwargs)
        if _names_cuda(kwargs.get("device")):
            found = func(*args, **{**kwargs, "device": "cpu"})
            _put_there(found)
            return found
        return func(*args, **kwargs)


def _to(func: Callable[..., Tensor], value: Tensor, rest: list[Any], kwargs: dict[str, Any]) -> Tensor:
    """Tensor.to(device, dtype), .to(dtype) and .to(other), with whatever else there may be."""
    device, copy = kwargs.pop("device", None), kwargs.pop("copy", False)
    kwargs.pop("non_blocking", None)
    if rest and isinstance(rest[0], str | torch.device):
        device = rest.pop(0)
    elif rest and isinstance(rest[0], Tensor):
        other = rest.pop(0)
        device = CUDA if is_there(other) else torch.device("cpu")
        kwargs.setdefault("dtype", other.dtype)
    if device is not None and torch.device(device).type not in ("cpu", "cuda"):
        return func(value, device, *rest, **kwargs)
    if device is not None:
        value = _moved(value, torch.device(device), copy)
    types = [each for each in rest if isinstance(each, torch.dtype)]
    return func(value, *types, **kwargs) if types or kwargs else value


class _Nothing:
    """A stream or an event."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    synchronize = wait_stream = record


def install() -> None:
    """Pretend from now on, in this process."""
    from brecq import devices
    from brecq.capture import export
    from brecq.converted import convert
    from brecq.deploy import complete

    pretended: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "mem_get_info": lambda *_: (8 << 30, 8 << 30), "Stream": _Nothing, "Event": _Nothing,
        "current_stream": _Nothing, "stream": lambda *_: contextlib.nullcontext(), "empty_cache": lambda: None,
        "is_current_stream_capturing": lambda: False,
        "get_device_name": lambda *_: "a pretended device", "set_sync_debug_mode": lambda *_: None,
    }  # fmt: skip
    for name, value in pretended.items():
        setattr(torch.cuda, name, value)

    def through(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with seen_through():
                return function(*args, **kwargs)

        return wrapped

    torch.accelerator.current_accelerator = lambda *_, **__: None  # type: ignore[assignment]
    Tensor.record_stream = lambda *_: None  # type: ignore[method-assign, assignment]
    seen = through(export._export)

    def exported(model: Any, *arguments: Any) -> Any:
        graph = seen(model, *arguments)
        if devices.device_of(model) == CUDA:  # what it makes was seen to be on the CPU
            devices._retarget(graph, CUDA)
        graph.recompile()
        return graph

    export._export = exported
    convert.to_program = complete.to_program = through(convert.to_program)
    os.environ["BRECQ_KERNELS"] = "eager"  # nothing is compiled for it
    _Operators().__enter__()
    _Functions().__enter__()


def pytest_configure(config: pytest.Config) -> None:
    install()
